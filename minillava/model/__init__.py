"""The model: ids and pixels in, logits out.

The letters in shapes, here and everywhere: B batch, T tokens, S tokens that are seen (those in the cache too), N
selected tokens, V vocabulary, d size of a head; H and W are a picture's height and width in pixels.
"""

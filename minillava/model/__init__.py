"""The model: token ids and pixel values in, logits out.

Letters in shapes, here and in every other file:

    B       rows in a batch
    T       tokens of a row that go through the model in this pass
    S       tokens of a row that can be seen: those in the KV cache, then the T of this pass
    N       tokens with a loss: their label is not -100, and they are not the first of a row
    V       vocabulary size
    d       size of one attention head
    H, W    height and width of a picture in pixels

In a shape, "hidden" is the width of the vectors that run through a model, its ``hidden_size``. "The paper" is Liu et
al. 2023, Visual Instruction Tuning, arXiv 2304.08485.
"""

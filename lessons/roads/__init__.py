"""The roads not taken: four other ways to show pictures to a language model, one file each.

    frozen.py     a visual prefix; the vision encoder is trained through a frozen language model
    flamingo.py   cross-attention between the blocks of a frozen language model
    blip2.py      a Q-Former between a frozen vision encoder and a frozen language model
    kosmos.py     interleaved text and pictures; everything is trained

Each model is a ``Llava`` in which one part is another, so the project's loop trains it and its data feed it. ``common``
has what several roads need. The letters in shapes are in ``minillava/model/__init__.py``; here also:

    Q       learned vectors that gather what is in a picture: latents, or queries
    P       pictures of a row
"""

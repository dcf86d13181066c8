"""The chat in a browser, made with gradio: ``python chat.py --web``.

What a visitor shows and says stays in the memory of this process, in the Visit of the one open page: no picture becomes
a file. The server answers only to the paths in server.SERVED. What visitors and the model write is shown as text.
"""

from minillava.errors import UserError

try:
    import gradio
except ImportError:
    raise UserError("--web needs gradio: pip install gradio") from None

if tuple(map(int, gradio.__version__.split(".")[:2])) < (6, 31):  # older ones have not been tried
    raise UserError(f"--web needs gradio 6.31 or later, not {gradio.__version__}: pip install --upgrade gradio")

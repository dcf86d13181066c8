"""LLaVA from scratch: a vision tower, a projection and a decoder, and the code that joins and trains them."""

import signal
import sys

# In python -m minillava..., Ctrl-C ends quietly while modules are imported. run_program() takes over then.
if (
    sys.argv[:1] == ["-m"]
    and any(part.startswith("minillava.") for part in sys.orig_argv)
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from minillava.checkpoint import load
from minillava.config import PRETRAINED
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.model.llava import Llava
from minillava.saving import save

__all__ = ["PRETRAINED", "Llava", "Processor", "Tokenizer", "load", "save"]

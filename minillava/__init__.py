"""LLaVA from scratch: a vision tower, a projection and a decoder, and the code that joins and trains them."""

from minillava.checkpoint import load
from minillava.config import PRETRAINED
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.model.llava import Llava
from minillava.saving import save

__all__ = ["PRETRAINED", "Llava", "Processor", "Tokenizer", "load", "save"]

"""LLaVA from scratch: a vision tower, a projection, a decoder, and what joins and trains them."""

from minillava.checkpoint import load, save
from minillava.llava import Llava
from minillava.tokenizer import Tokenizer

__all__ = ["Llava", "Tokenizer", "load", "save"]

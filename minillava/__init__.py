"""LLaVA from scratch: a vision tower, a projection, a decoder, and what joins and trains them."""

from minillava.checkpoint import load
from minillava.config import PRETRAINED
from minillava.llava import Llava
from minillava.processor import Processor
from minillava.saving import save
from minillava.tokenizer import Tokenizer

__all__ = ["PRETRAINED", "Llava", "Processor", "Tokenizer", "load", "save"]

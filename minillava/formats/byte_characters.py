"""tokenizer.json writes each byte of a token as a printable character, by GPT-2's table. A space is "Ġ"."""

from collections.abc import Iterable

from minillava.errors import UserError

# A printable byte is the character with its number; the others are the characters from 256 up, in order.
HIDDEN = [byte for byte in range(256) if not chr(byte).isprintable() or byte == ord(" ")]
BYTE_TO_CHARACTER = {byte: chr(byte) for byte in range(256)} | {byte: chr(256 + i) for i, byte in enumerate(HIDDEN)}
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
TRANSLATION = str.maketrans({character: chr(byte) for character, byte in CHARACTER_TO_BYTE.items()})


def to_characters(token: bytes) -> str:
    """A token's bytes as tokenizer.json writes them."""
    return "".join(BYTE_TO_CHARACTER[byte] for byte in token)


def to_bytes(token: str) -> bytes:
    """The bytes of a token in tokenizer.json. Raises UserError if it is not written in GPT-2's characters."""
    return all_to_bytes([token])[token]


def all_to_bytes(tokens: Iterable[str]) -> dict[str, bytes]:
    """to_bytes() for many tokens: token -> bytes."""
    tokens = list(tokens)
    if not CHARACTER_TO_BYTE.keys() >= set("".join(tokens)):
        wrong = next(token for token in tokens if not CHARACTER_TO_BYTE.keys() >= set(token))
        raise UserError(f"token {wrong!r} is not written in byte-level characters")
    return {token: token.translate(TRANSLATION).encode("latin-1") for token in tokens}

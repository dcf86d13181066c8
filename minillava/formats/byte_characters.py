"""How tokenizer.json writes the bytes of a token: as printable characters, by GPT-2's table. A space is "Ġ"."""

from minillava.errors import UserError

# Printable bytes stand for themselves, the others for characters from 256 up.
HIDDEN = [byte for byte in range(256) if not chr(byte).isprintable() or byte == ord(" ")]
BYTE_TO_CHARACTER = {byte: chr(byte) for byte in range(256)} | {byte: chr(256 + i) for i, byte in enumerate(HIDDEN)}
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def to_characters(token: bytes) -> str:
    """How tokenizer.json writes the bytes of a token."""
    return "".join(BYTE_TO_CHARACTER[byte] for byte in token)


def to_bytes(token: str) -> bytes:
    """The bytes of a token in tokenizer.json. Raises UserError where it is not written in GPT-2's table."""
    try:
        return bytes(CHARACTER_TO_BYTE[character] for character in token)
    except KeyError:
        raise UserError(f"token {token!r} is not written in byte-level characters") from None

"""tokenizer.json writes each byte of a token as a printable character, by GPT-2's table. A space is "Ġ"."""

from minillava.errors import UserError

# A printable byte is the character with its number; the others are the characters from 256 up, in order.
HIDDEN = [byte for byte in range(256) if not chr(byte).isprintable() or byte == ord(" ")]
BYTE_TO_CHARACTER = {byte: chr(byte) for byte in range(256)} | {byte: chr(256 + i) for i, byte in enumerate(HIDDEN)}
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def to_characters(token: bytes) -> str:
    """A token's bytes as tokenizer.json writes them."""
    return "".join(BYTE_TO_CHARACTER[byte] for byte in token)


def to_bytes(token: str) -> bytes:
    """The bytes of a token in tokenizer.json. Raises UserError if it has a character that is not in GPT-2's table."""
    try:
        return bytes(CHARACTER_TO_BYTE[character] for character in token)
    except KeyError:
        raise UserError(f"token {token!r} has a character that is not in GPT-2's table of bytes") from None

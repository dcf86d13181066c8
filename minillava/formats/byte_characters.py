"""How tokenizer.json writes the bytes of a token: as printable characters, by GPT-2's table. A space is "Ġ"."""

from minillava.errors import UserError


def _byte_characters() -> dict[int, str]:
    """GPT-2's table: printable bytes stand for themselves, the others for characters from 256 up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    hidden = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + index) for index, byte in enumerate(hidden)}


BYTE_TO_CHARACTER = _byte_characters()
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

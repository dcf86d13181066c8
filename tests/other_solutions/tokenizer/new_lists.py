"""Joining into a new list, and bytes in a bytearray."""


def _join(pieces, pair):
    done, rest = [], list(pieces)
    while rest:
        if tuple(rest[:2]) == pair:
            done.append(rest.pop(0) + rest.pop(0))
        else:
            done.append(rest.pop(0))
    pieces[:] = done


class Tokenizer:
    def decode_bytes(self, ids):
        result = bytearray()
        for index in ids:
            result += self._bytes.get(index, b"")
        return bytes(result)

    def decode(self, ids):
        text = str(self.decode_bytes(ids), "utf-8", "replace")
        return text.removeprefix(" ") if self._model.adds_space else text

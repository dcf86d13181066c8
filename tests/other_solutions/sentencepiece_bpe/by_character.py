"""Words are cut character by character; whether a space is added is asked case by case."""

from minillava.formats.tokenizer_json import SPACE
from minillava.inputs.sentencepiece_bpe import Where


class SentencePieceBPE:
    def normalize(self, text, where):
        for pattern, replacement, adds_space in self._steps:
            if adds_space and where == Where.INSIDE:
                continue
            text = pattern.sub(replacement, text)
        return text

    def encode(self, text, where):
        if self._scheme is not None:
            text = text.replace(" ", SPACE)
            if where is Where.FRESH:
                add = self._scheme != "never"
            elif text.startswith(SPACE) or where is Where.INSIDE:
                add = False
            else:
                add = self._scheme == "always" or (self._scheme != "never" and where is Where.START)
            text = SPACE * add + text
        words = [""]
        for character in text:
            if self._splits and character == SPACE and words[-1]:
                words.append("")
            words[-1] += character
        ids = []
        for word in words:
            tokens = [word] if word in self._whole else self._merge(self._characters(word))
            for token in tokens:
                if token in self._vocab:
                    ids.append(self._vocab[token])
                else:
                    ids.extend(self._byte_ids[byte] for byte in token.encode())
        return ids

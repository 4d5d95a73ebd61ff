"""A tokenizer as llguidance asks for it."""

from __future__ import annotations

from hasten.models.tokenizer import Tokenizer

__all__ = ["Vocabulary"]

_MARK = "\x02"


class Vocabulary:
    """What llguidance asks of a tokenizer (its class `TokenizerWrapper`).

    The end of the output is a token of its own after the vocabulary's last, so that a structure
    means the same for models with several end tokens or none.

    Args:
        tokenizer: Says what each token adds to the text.
        vocab_size: Number of logits; ids that the tokenizer does not know are no text.

    Attributes:
        tokens: Bytes of each token, by id.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokens = [*tokenizer.token_bytes(vocab_size), b""]
        self.eos_token_id = vocab_size
        self.special_token_ids = sorted(i for i in tokenizer.special_ids if i < vocab_size)
        self._tokenizer = tokenizer
        self._by_bytes: dict[bytes, int] = {}

    def __call__(self, text: str) -> list[int]:
        """Tokens of a text that comes somewhere inside another."""
        wanted = text.encode()
        ids = self._encode(text)
        if self._spells(ids, wanted):
            return ids
        # Some tokenizers put a space before a text, which then comes before the mark.
        ids = self._encode(_MARK + text)
        for begin in (1, 2):
            if self._spells(ids[begin:], wanted):
                return ids[begin:]
        return self._greedy(wanted)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special=False, parse_special=False)

    def _spells(self, ids: list[int], wanted: bytes) -> bool:
        return max(ids, default=0) < len(self.tokens) and wanted == b"".join(
            self.tokens[i] for i in ids
        )

    def _greedy(self, wanted: bytes) -> list[int]:
        """The longest token first, as far as the vocabulary reaches."""
        if not self._by_bytes:
            special = set(self.special_token_ids)
            texts = {token: i for i, token in enumerate(self.tokens) if i not in special}
            texts.pop(b"", None)
            self._by_bytes = texts
        longest = max(map(len, self._by_bytes), default=0)
        ids: list[int] = []
        begin = 0
        while begin < len(wanted):
            ends = range(min(begin + longest, len(wanted)), begin, -1)
            found = next((end for end in ends if wanted[begin:end] in self._by_bytes), None)
            if found is None:
                break
            ids.append(self._by_bytes[wanted[begin:found]])
            begin = found
        return ids

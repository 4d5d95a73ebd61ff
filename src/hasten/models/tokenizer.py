"""Text to token ids and back, on Hugging Face's `tokenizers`.

The library does the work; this module keeps what the library leaves to its callers: which tokens
end a generation, and that the text of a special token does not act as one where it must not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from hasten.errors import UsageError
from hasten.models.detokenizer import Detokenizer, token_bytes
from hasten.models.tokenizer_files import Parts, read_parts, write_parts

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

__all__ = ["Detokenizer", "Tokenizer"]

# Tokens that end a turn or a text in the families that use them; llama.cpp keeps the same list
# (src/llama-vocab.cpp, special_eog_ids). They count only where they are special tokens.
_END_TOKENS = {
    *("<|endoftext|>", "<|im_end|>", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    *("<|return|>", "<|call|>", "<end_of_turn>", "<end_of_utterance>", "<eos>", "</s>"),
    *("<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<｜end▁of▁sentence｜>"),
}


class Tokenizer:
    """A vocabulary with its rules; safe to use from several threads.

    Args:
        parts: The vocabulary and its special tokens. Truncation and padding of its backend are
            switched off: nothing is ever cut silently.

    Attributes:
        vocab_size: One more than the largest id.
        bos_id: The token that begins a text, None where the model has none.
        eos_ids: Every token that ends a generation: those that the files declare, and special
            tokens with a name that is known to.
        special_ids: Tokens that control the model and are no text.
        prefix: Tokens that the model expects before a text.
        suffix: Tokens that it expects after one.
    """

    def __init__(self, parts: Parts) -> None:
        self._backend = backend = parts.backend
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        texts = {i: token.content for i, token in added.items() if token.special}
        self.special_ids = frozenset(texts)
        self._unknown = parts.special.get("unk_token", _unknown_of(backend))
        self.vocab_size: int = max(backend.get_vocab_size(), max(added, default=-1) + 1)
        self.bos_id = parts.special.get("bos_token")
        self.eos_ids = parts.end_ids | _known_ends(texts)
        self._parts = Parts(backend, parts.special, self.eos_ids)
        self.prefix, self.suffix = _template(backend)
        self._lock = Lock()

    @classmethod
    def from_directory(cls, path: Path | str) -> Self:
        """Reads the tokenizer of a Hugging Face directory.

        `tokenizer.json` is the tokenizer; `tokenizer_config.json` and `special_tokens_map.json`
        name its special tokens, `generation_config.json` and `config.json` those that end a
        generation.

        Raises:
            ModelFileError: There is no tokenizer, or its files contradict themselves.
        """
        return cls(read_parts(Path(path)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """Builds the tokenizer that a GGUF's metadata describes.

        Raises:
            ModelFileError: The metadata hold no tokenizer, or one that contradicts itself.
            UnsupportedModelError: A tokenizer model or pre-tokenizer that is not known here.
        """
        from hasten.models.gguf_tokenizer import build

        return cls(build(metadata))

    @property
    def busy(self) -> bool:
        """Whether `encode` would wait for another thread's text now."""
        return self._lock.locked()

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token: n tokens hold no text of more than n times as many.

        Where a tokenizer drops characters (repeated white space, say), a text may be longer.
        """
        return max(map(len, self._backend.get_vocab()), default=1)

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Returns the tokens of a text.

        Args:
            text: Any text without lone surrogates.
            add_special: Add the tokens that the model expects around a text (BOS, EOS).
            parse_special: Let the text of a special token ("<|im_end|>") stand for that token.
                False takes it for the ordinary text that it is, as text of a user should be.

        Raises:
            UsageError: The text holds a lone surrogate.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text holds the lone surrogate U+{ord(text[error.start]):04X} at character "
                f"{error.start}, which no UTF-8 text can hold",
                do="decode the text's bytes with errors='replace'",
            ) from error
        with self._lock:
            self._backend.encode_special_tokens = not parse_special
            encoding = self._backend.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        if not parse_special and not self.special_ids.isdisjoint(ids):
            ids = self._as_text(encoding)
        return [*self.prefix, *ids, *self.suffix] if add_special else ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Returns the text of tokens; ids that the vocabulary does not hold leave none."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    def detokenizer(self, *, skip_special: bool = True) -> Detokenizer:
        """Returns a decoder for one sequence whose tokens come one by one.

        Raises:
            UnsupportedModelError: The tokenizer has a decoder that cannot be followed so.
        """
        return Detokenizer(self._backend, self.special_ids if skip_special else frozenset())

    def token_bytes(self, count: int) -> list[bytes]:
        """Returns what each token adds to a text, by id; the name of special ones.

        Args:
            count: Ids to list, from 0; those that the vocabulary does not hold add nothing.

        Raises:
            UnsupportedModelError: The tokenizer has a decoder that cannot be followed so.
        """
        return token_bytes(self._backend, count)

    def save(self, directory: Path | str) -> None:
        """Writes the tokenizer in files that `from_directory` and transformers read as the same.

        Files: tokenizer.json, tokenizer_config.json, and generation_config.json (which holds the
        tokens that end a generation) where the directory has none yet.
        """
        with self._lock:
            write_parts(self._parts, Path(directory))

    def definition(self) -> dict[str, Any]:
        """Returns the content of its tokenizer.json."""
        with self._lock:
            self._backend.encode_special_tokens = False
            content: dict[str, Any] = json.loads(self._backend.to_str())
        return content

    @property
    def roles(self) -> Mapping[str, int]:
        """Ids of the tokens that have a role, by transformers' name of it ("bos_token", ...)."""
        return self._parts.special

    def _as_text(self, encoding: Encoding) -> list[int]:
        """The ids of an encoding, with special tokens that ordinary text produced spelled out.

        Unigram vocabularies list control tokens among the words, so their text can come out as
        them even when special tokens are not looked for. Each is cut after its first character
        then, which no vocabulary joins again.
        """
        ids: list[int] = []
        for i, token in zip(encoding.ids, encoding.tokens, strict=True):
            if i not in self.special_ids or i == self._unknown:
                ids.append(i)
            else:
                for part in (token[:1], token[1:]):
                    ids += [t.id for t in self._backend.model.tokenize(part)]
        return ids


def _known_ends(texts: Mapping[int, str]) -> frozenset[int]:
    """Ids of special tokens, given by id, whose text is known to end a generation."""
    names = _END_TOKENS & set(texts.values())
    if {"<|return|>", "<|call|>"} <= names:
        names -= {"<|end|>"}  # in gpt-oss it ends one message of several
    return frozenset(i for i, text in texts.items() if text in names)


def _unknown_of(backend: Backend) -> int | None:
    """The token that stands for what the vocabulary lacks, as tokenizer.json itself names it."""
    text = getattr(backend.model, "unk_token", None)
    return None if text is None else backend.token_to_id(text)


def _template(backend: Backend) -> tuple[list[int], list[int]]:
    """The tokens that the model expects before and after a text."""
    for probe in ("a", " ", "0", "\n"):
        encoding = backend.encode(probe)
        ids, mask = encoding.ids, encoding.special_tokens_mask
        if 0 in mask:
            first, last = mask.index(0), len(mask) - mask[::-1].index(0)
            return ids[:first], ids[last:]
    return backend.encode("").ids, []

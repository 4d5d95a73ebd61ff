"""Text out of a stream of tokens, whole characters only.

Decoding a growing list again for each token costs the square of its length, and decoding a window
of it is only nearly right. So the decoder that the tokenizer declares is followed step by step
here, each step keeping what it cannot pass on yet: bytes of an unfinished character, or a run of
byte tokens that may still turn out not to be UTF-8. The pieces join to exactly what the
tokenizers library decodes from all tokens at once (`tokenizers/src/decoders`), for any tokens.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hasten.errors import UnsupportedModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["ByteText", "Detokenizer", "token_bytes"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer:
    """Turns one sequence of tokens into text as they come; a new one for each sequence.

    Args:
        backend: The tokenizer whose decoder is followed.
        hidden: Ids that leave no text.

    Raises:
        UnsupportedModelError: The tokenizer has a decoder that is not known here.
    """

    def __init__(self, backend: Backend, hidden: frozenset[int]) -> None:
        self._token = backend.id_to_token
        self._hidden = hidden
        self._steps = _steps(backend)

    def push(self, token_id: int) -> str:
        """Adds a token and returns the text that became final with it, maybe none.

        An id that the vocabulary does not hold leaves no text, as in `Tokenizer.decode`.
        """
        if token_id in self._hidden or (token := self._token(token_id)) is None:
            return ""
        texts: Iterable[str] = (token,)
        for step in self._steps:
            texts = [out for text in texts for out in step.feed(text)]
        return "".join(texts)

    def flush(self) -> str:
        """Ends the sequence and returns what was held back.

        Bytes that never became a character come out as U+FFFD, as in `Tokenizer.decode`.
        """
        texts: list[str] = []
        for step in self._steps:
            texts = [out for text in texts for out in step.feed(text)]
            texts += step.end()
        return "".join(texts)


class ByteText:
    """Turns tokens into text by the bytes that each stands for, wherever it comes.

    Unlike `Detokenizer` it keeps the space that the first token of a text may begin with.

    Args:
        contents: Bytes of each token, by id.
        hidden: Ids that leave no text.
    """

    def __init__(self, contents: Sequence[bytes], hidden: frozenset[int]) -> None:
        self._contents = contents
        self._hidden = hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Adds a token and returns the text that became final with it, maybe none."""
        if token_id in self._hidden or token_id >= len(self._contents):
            return ""
        return self._decoder.decode(self._contents[token_id])

    def flush(self) -> str:
        """Ends the sequence and returns what was held back."""
        return self._decoder.decode(b"", final=True)


def token_bytes(backend: Backend, count: int) -> list[bytes]:
    """What each token adds to a text that it does not begin, by id; nothing where there is none.

    Args:
        backend: The tokenizer whose decoder says it.
        count: Ids to list, from 0.

    Raises:
        UnsupportedModelError: The tokenizer has a decoder that is not known here.
    """
    steps = _steps(backend)
    falls_back = any(isinstance(step, _ByteFallback) for step in steps)

    def content(token: str) -> bytes:
        if falls_back and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        texts: Iterable[str] = (token,)
        for step in steps:
            if isinstance(step, _ByteLevel):
                return b"".join(map(step.spell, texts))
            texts = [out for text in texts for out in step.feed(text)]
        return "".join(texts).encode()

    content("a")  # some steps treat the first token of a text in their own way
    tokens = map(backend.id_to_token, range(count))
    return [b"" if token is None else content(token) for token in tokens]


class _Step(Protocol):
    def feed(self, text: str) -> Iterable[str]: ...
    def end(self) -> Iterable[str]: ...


class _Map:
    """A step that treats each text by itself."""

    def __init__(self, function: Callable[[str], str]) -> None:
        self._function = function

    def feed(self, text: str) -> Iterable[str]:
        return (self._function(text),)

    def end(self) -> Iterable[str]:
        return ()


class _First(_Map):
    """A step that treats the first text in one way and all others in another."""

    def __init__(self, first: Callable[[str], str], others: Callable[[str], str]) -> None:
        super().__init__(first)
        self._others = others

    def feed(self, text: str) -> Iterable[str]:
        out = self._function(text)
        self._function = self._others
        return (out,)


class _ByteLevel(_Map):
    """Characters that spell bytes (GPT-2's alphabet) to UTF-8 text.

    The incremental decoder replaces malformed bytes exactly as Rust's `from_utf8_lossy` does:
    one U+FFFD for each maximal part of a character (Unicode 15, section 3.9).
    """

    def __init__(self) -> None:
        self._bytes = _byte_alphabet()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def spell(self, text: str) -> bytes:
        """The bytes that a token spells."""
        try:
            return bytes(map(self._bytes.__getitem__, text))
        except KeyError:  # a token added as plain text
            return text.encode()

    def feed(self, text: str) -> Iterable[str]:
        return (self._decoder.decode(self.spell(text)),)

    def end(self) -> Iterable[str]:
        out = self._decoder.decode(b"", final=True)
        return (out,) if out else ()


class _ByteFallback(_Map):
    """Runs of byte tokens ("<0xE2>") to text.

    A run is UTF-8 as a whole or else one U+FFFD for each of its bytes, so nothing of it is final
    before it ends.
    """

    def __init__(self) -> None:
        self._run = bytearray()

    def feed(self, text: str) -> Iterable[str]:
        if (match := _BYTE_TOKEN.fullmatch(text)) is None:
            return (*self.end(), text)
        self._run.append(int(match[1], 16))
        return ()

    def end(self) -> Iterable[str]:
        run = bytes(self._run)
        self._run.clear()
        try:
            return (run.decode(),) if run else ()
        except UnicodeDecodeError:
            return ("\ufffd",) * len(run)


class _StripStart(_Map):
    """Removes up to `count` leading characters `content` of the whole text."""

    def __init__(self, content: str, count: int) -> None:
        self._content = content
        self._left = count

    def feed(self, text: str) -> Iterable[str]:
        while self._left and text:
            if text[0] != self._content:
                self._left = 0
                break
            text = text[1:]
            self._left -= 1
        return (text,)


def _strip_each(content: str, count: int) -> _Map:
    def strip(text: str) -> str:
        return text[min(count, len(text) - len(text.lstrip(content))) :]

    return _Map(strip)


def _metaspace(replacement: str, keeps_first: bool) -> _Map:
    def others(text: str) -> str:
        return text.replace(replacement, " ")

    def first(text: str) -> str:
        return others(text) if keeps_first else text.replace(replacement, "")

    return _First(first, others)


def _steps(backend: Backend) -> list[_Step]:
    decoder = backend.decoder
    if decoder is None:  # the library joins tokens with spaces then
        return [_First(lambda text: text, lambda text: " " + text)]
    state = json.loads(decoder.__getstate__())
    specs = state["decoders"] if state["type"] == "Sequence" else [state]
    steps: list[_Step] = []
    fused = False
    for spec in specs:
        if spec["type"] == "Fuse":
            fused = True
        else:
            steps.append(_step(spec, fused))
            fused = fused or spec["type"] == "ByteLevel"
    return steps


def _step(spec: Mapping[str, Any], fused: bool) -> _Step:
    match spec:
        case {"type": "ByteLevel"} if not fused:
            return _ByteLevel()
        case {"type": "ByteFallback"} if not fused:
            return _ByteFallback()
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if (
            not fused or len(pattern) == 1
        ):
            return _Map(lambda text: text.replace(pattern, content))
        case {"type": "Strip", "content": str(content), "start": int(start), "stop": 0}:
            return _StripStart(content, start) if fused else _strip_each(content, start)
        case {"type": "Metaspace", "replacement": str(replacement), **rest} if not fused:
            return _metaspace(replacement, rest.get("prepend_scheme") == "never")
        case _:
            raise UnsupportedModelError(
                f"the tokenizer's decoder has the step {json.dumps(spec, ensure_ascii=False)}",
                allowed="ByteLevel, ByteFallback, Replace, Fuse, Strip (left), Metaspace",
            )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}

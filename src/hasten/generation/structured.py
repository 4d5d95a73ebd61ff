"""Outputs that follow a JSON schema, a regular expression or a grammar, by llguidance.

After each token llguidance says which tokens may come next. A thread of its own works that out
while the executor computes the logits; a sampler waits for it, so that no output depends on which
of the two comes first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, NoReturn, Self, cast

import numpy as np
from numpy.typing import NDArray

from hasten.errors import GenerationError, UsageError
from hasten.generation.vocabulary import Vocabulary
from hasten.models.detokenizer import ByteText
from hasten.models.tokenizer import Tokenizer
from hasten.types import Structure

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

__all__ = ["Guide", "StructureCompiler"]

Limits = NDArray[np.float32]

_WHITESPACE = r"( |\n{1,2}[ \t]{0,20})"
"""What may stand between the parts of a JSON text; llama.cpp's choice
(common/json-schema-to-grammar.cpp, SPACE_RULE). Without a bound a model may never leave it."""

_NAMES = {
    "json_schema": "the JSON schema",
    "regex": "the regular expression",
    "grammar": "the grammar",
}
_STUCK = "no token of the vocabulary continues the structure"
_LONGEST_REASON = 300


class Guide:
    """Holds one sequence to its structure.

    Args:
        matcher: llguidance's state, before the first token.
        vocab_size: Number of logits.
        ends: Tokens that end the output; allowed where the structure may end.
        worker: Computes the limits.

    Attributes:
        complete: Nothing may follow: the output ends here.
    """

    def __init__(
        self, matcher: LLMatcher, vocab_size: int, ends: Iterable[int], worker: ThreadPoolExecutor
    ) -> None:
        self.complete = False
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._ends = list(ends)
        self._worker = worker
        self._bits = np.zeros(-(-(vocab_size + 1) // 32), "<u4")  # see Vocabulary.end
        self._next: Future[Limits] = worker.submit(self._compute)

    def copy(self) -> Self:
        """A guide in the same state, for another sequence."""
        self.limits()
        return type(self)(self._matcher.deep_copy(), self._vocab_size, self._ends, self._worker)

    def limits(self) -> Limits:
        """Upper limits of the logits [vocab]: infinity for tokens that may come next, else -inf.

        Raises:
            GenerationError: No token may come next, or finding them takes too much effort.
        """
        return self._next.result()

    def accept(self, token: int) -> None:
        """Goes on by a token that the limits allowed."""
        self.limits()
        self._matcher.consume_token(token)
        self.complete = self._matcher.is_stopped() and not self._matcher.is_error()
        if not self.complete:
            self._next = self._worker.submit(self._compute)

    def _compute(self) -> Limits:
        self._check()
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        bits = self._bits.view(np.uint8)
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little")
        if self._matcher.is_accepting():
            allowed[self._ends] = 1
        elif not allowed.any():
            self._check()
            raise GenerationError(_STUCK)
        # By arithmetic, for indexing takes ten times as long.
        limits: Limits = (allowed.astype(np.float32) - np.float32(0.5)) * np.float32(np.inf)
        return limits

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _shorten(self._matcher.get_error())
            if reason == "NoExtensionBias":
                raise GenerationError(_STUCK)
            raise GenerationError(f"the structure cannot be followed: {reason}")


class StructureCompiler:
    """Makes the guides of an engine; safe to use from several threads.

    Args:
        tokenizer: Says what each token adds to the text.
        vocab_size: Number of logits.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="hasten-structure")
        self._lock = Lock()
        self._prepared: tuple[Vocabulary, LLTokenizer] | None = None

    def compile(self, structure: Structure, ends: Iterable[int]) -> Guide:
        """The guide of a structure, ready for a first token.

        Args:
            structure: Checked by `check_sampling`.
            ends: Tokens that end the output.

        Raises:
            UsageError: The structure is malformed, holds what llguidance does not support, takes
                too much effort, or no output fulfils it.
        """
        from llguidance import LLMatcher, LLParserLimits

        grammar = _to_grammar(structure)
        _, lltokenizer = self.prepare()
        # Narrower than its own bounds: 250,000 states take up to 500 MB.
        limits = LLParserLimits(
            max_grammar_size=50_000,
            max_lexer_states=50_000,
            step_lexer_fuel=100_000,
            verbose_errors=False,
        )
        matcher = LLMatcher(lltokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            _refuse(structure, _shorten(matcher.get_error()))
        guide = Guide(matcher, self._vocab_size, ends, self._worker)
        try:
            guide.limits()
        except GenerationError as error:
            _refuse(structure, error.what)
        return guide

    def decoder(self, *, skip_special: bool = True) -> ByteText:
        """The decoder of a sequence with a guide: its text is what llguidance took it for."""
        vocabulary, _ = self.prepare()
        hidden = self._tokenizer.special_ids if skip_special else frozenset()
        return ByteText(vocabulary.tokens, hidden)

    def close(self) -> None:
        """Ends the thread."""
        self._worker.shutdown(cancel_futures=True)

    def prepare(self) -> tuple[Vocabulary, LLTokenizer]:
        """The vocabulary as llguidance wants it, made when it is first needed."""
        from llguidance import LLTokenizer

        with self._lock:
            if self._prepared is None:
                vocabulary = Vocabulary(self._tokenizer, self._vocab_size)
                wrapper = cast("TokenizerWrapper", vocabulary)
                self._prepared = vocabulary, LLTokenizer(wrapper)
            return self._prepared


def _to_grammar(structure: Structure) -> str:
    from llguidance import LLMatcher

    match structure.kind:
        case "json_schema":
            try:
                value = json.loads(structure.text)
            except (ValueError, RecursionError) as error:
                _refuse(structure, f"it is not JSON: {error}")
            if value is not True and not isinstance(value, dict):
                _refuse(structure, "it is not an object")
            return LLMatcher.grammar_from_json_schema(
                "{}" if value is True else structure.text,
                defaults={"whitespace_pattern": _WHITESPACE},
            )
        case "regex":
            return LLMatcher.grammar_from_regex(structure.text)
        case "grammar":
            return LLMatcher.grammar_from_lark(structure.text)


def _refuse(structure: Structure, reason: str) -> NoReturn:
    raise UsageError(
        f"{_NAMES[structure.kind]} cannot be used: {reason}",
        do="docs/sampling.md says what structures may hold",
    )


def _shorten(message: str) -> str:
    """The part of llguidance's message that says what is wrong, on one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip() not in ("", "^")]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    # What comes after the first line shows the place, but a regular expression's error is there.
    return (errors or lines or ["no reason given"])[0][:_LONGEST_REASON]

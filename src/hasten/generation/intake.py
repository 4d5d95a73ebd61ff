"""From a request to its sequences: everything about it is checked here, before any work."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence as Tokens

from hasten.errors import CapacityError, HastenError, UsageError
from hasten.generation.adapters import AdapterTable
from hasten.generation.bounds import check_sampling
from hasten.generation.sampler import TokenSampler
from hasten.generation.sequence import Sequence
from hasten.generation.structured import StructureCompiler
from hasten.generation.text import TextDecoder, TextStream
from hasten.kernels.softmax import Softmax
from hasten.models.model import Model
from hasten.models.tokenizer import Tokenizer
from hasten.types import Request, SamplingParams

__all__ = ["Intake", "find_tokenizer"]


class Intake:
    """Turns requests into sequences; safe to use from several threads.

    Args:
        model: Its vocabulary and tokenizer.
        context: Longest sequence, prompt and output.
        adapters: What requests may name.
        softmax: What samplers run on.
    """

    def __init__(
        self, model: Model, context: int, adapters: AdapterTable, softmax: Softmax
    ) -> None:
        self._adapters = adapters
        self._softmax = softmax
        self._vocab_size = model.config.vocab_size
        self._context = context
        self._tokenizer = find_tokenizer(model)
        self._eos = frozenset(model.config.eos_ids)
        self._structures: StructureCompiler | None = None
        if self._tokenizer is not None:
            self._eos |= self._tokenizer.eos_ids
            self._structures = StructureCompiler(self._tokenizer, self._vocab_size)
        self._arrivals = itertools.count()

    def sequences(self, request: Request) -> list[Sequence]:
        """One for each of a request's outputs.

        Raises:
            UsageError: Sampling parameters, tokens or the deadline out of range, a structure that
                cannot be used, or no adapter of this name.
            CapacityError: The prompt does not fit the context.
        """
        sampling = request.sampling
        check_sampling(sampling, self._vocab_size)
        self.check_tokens(request.prompt)
        if request.deadline is not None and math.isnan(request.deadline):
            raise UsageError("deadline is nan", allowed="seconds of time.monotonic")
        if sampling.stop and self._tokenizer is None:
            raise UsageError("stop strings need a tokenizer, and the model has none")
        adapter = self._adapters.find(request.adapter)
        ends = frozenset(sampling.stop_tokens)
        if not sampling.ignore_eos:
            ends |= self._eos
        guide = None
        if sampling.structure is not None:
            if self._structures is None:
                raise UsageError("a structure needs a tokenizer, and the model has none")
            guide = self._structures.compile(sampling.structure, ends)
        return [
            Sequence(
                request,
                TextStream(self._decoder(sampling), sampling.stop),
                TokenSampler(
                    sampling,
                    request.prompt,
                    index,
                    ends=ends,
                    guide=guide if guide is None or index == 0 else guide.copy(),
                    softmax=self._softmax,
                ),
                next(self._arrivals),
                index,
                adapter,
            )
            for index in range(sampling.n)
        ]

    def check_tokens(self, tokens: Tokens[int], room: int = 1) -> None:
        """Refuses an empty text, one that leaves no room for so many more, and unknown tokens."""
        if not tokens:
            raise UsageError("the prompt is empty", allowed="at least one token")
        if len(tokens) + room > self._context:
            raise CapacityError(
                f"the prompt has {len(tokens)} tokens and the context holds {self._context}",
                allowed=f"prompts of up to {self._context - room} tokens",
                do="shorten the prompt or raise max_context where the model allows it",
            )
        bad = [t for t in tokens if not 0 <= t < self._vocab_size]
        if bad:
            raise UsageError(
                f"token {bad[0]} is not in the vocabulary", allowed=f"0 to {self._vocab_size - 1}"
            )

    def prepare_structures(self) -> None:
        """Makes what the first structure would wait for."""
        if self._structures is not None:
            self._structures.prepare()

    def close(self) -> None:
        """Ends the thread that follows structures."""
        if self._structures is not None:
            self._structures.close()

    def _decoder(self, sampling: SamplingParams) -> TextDecoder | None:
        if self._structures is not None and sampling.structure is not None:
            return self._structures.decoder(skip_special=not sampling.keep_special)
        if self._tokenizer is None:
            return None
        return self._tokenizer.detokenizer(skip_special=not sampling.keep_special)


def find_tokenizer(model: Model) -> Tokenizer | None:
    """A model without a tokenizer still runs on token ids."""
    try:
        return model.tokenizer
    except HastenError:
        return None

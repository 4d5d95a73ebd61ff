"""A sequence on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from hasten.generation.adapters import LoadedAdapter
from hasten.generation.logprobs import PromptLogprobs
from hasten.generation.prefix import BlockNames
from hasten.generation.sampler import TokenSampler
from hasten.generation.text import TextStream
from hasten.types import Request

__all__ = ["Sequence"]


@dataclass(slots=True, eq=False)
class Sequence:
    """One output of a request, from its arrival to its end.

    Attributes:
        request: As it was submitted.
        text: Its detokeniser and stop strings.
        sampler: Chooses its tokens.
        arrival: Place in the order in which sequences came; no two have the same.
        index: Which of the request's outputs it is, from 0.
        adapter: The LoRA adapter that it runs with; None is the model itself.
        tokens: Prompt and output so far.
        running: It holds a slot; otherwise it waits, or has ended.
        computed: Tokens whose keys and values are in its blocks.
        blocks: KV blocks that it holds, in the order of positions.
        names: What its full blocks are called.
        cached_tokens: Tokens of the prompt that the prefix cache held.
        preemptions: How often it gave its blocks back.
        model_seconds: Executor time since its last output: a long prompt takes several calls.
        prompt_logprobs: Collects those of the prompt, where the request asked for them.
    """

    request: Request
    text: TextStream
    sampler: TokenSampler
    arrival: int
    index: int = 0
    adapter: LoadedAdapter | None = None
    tokens: list[int] = field(init=False)
    running: bool = False
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    names: BlockNames = field(init=False)
    cached_tokens: int = 0
    preemptions: int = 0
    model_seconds: float = 0.0
    prompt_logprobs: PromptLogprobs | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        # An adapter that is loaded again under its name may have changed.
        digest = None if self.adapter is None else self.adapter.digest
        self.names = BlockNames(self.request.tenant, digest)
        self.tokens = list(self.request.prompt)
        asked = self.request.sampling.prompt_logprobs
        if asked is not None and self.index == 0:
            self.prompt_logprobs = PromptLogprobs(self.request.prompt, asked, self.sampler.softmax)

    @property
    def order(self) -> tuple[int, int]:
        """What comes first is the least of these: by priority, then by arrival."""
        return self.request.priority, self.arrival

    @property
    def generated(self) -> int:
        """Output tokens so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled; 1 while it decodes."""
        return len(self.tokens) - self.computed

    @property
    def reads_cache(self) -> bool:
        """Whether blocks that others computed will do: not while its prompt's logits are wanted."""
        return self.prompt_logprobs is None or self.prompt_logprobs.complete

    def logit_positions(self, begin: int, end: int) -> list[int]:
        """Positions in begin .. end - 1, which are computed next, whose logits are wanted."""
        asked = self.prompt_logprobs
        positions = [] if asked is None else list(asked.wanted(begin, end))
        if end == len(self.tokens):
            positions.append(end - 1)
        return positions

"""A sequence on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hasten.generation.prefix import BlockNames
from hasten.generation.sampler import make_generator
from hasten.generation.text import TextStream
from hasten.types import Request

__all__ = ["Sequence"]


@dataclass(slots=True, eq=False)
class Sequence:
    """One output of a request, from its arrival to its end.

    Attributes:
        request: As it was submitted.
        text: Its detokeniser and stop strings.
        tokens: Prompt and output so far.
        arrival: Place in the order in which sequences came; no two have the same.
        index: Which of the request's outputs it is, from 0.
        running: It holds a slot; otherwise it waits, or has ended.
        computed: Tokens whose keys and values are in its blocks.
        blocks: KV blocks that it holds, in the order of positions.
        names: What its full blocks are called.
        cached_tokens: Tokens of the prompt that the prefix cache held.
        preemptions: How often it gave its blocks back.
        model_seconds: Executor time since its last output: a long prompt takes several calls.
        generator: Its random stream.
    """

    request: Request
    text: TextStream
    tokens: list[int]
    arrival: int
    index: int = 0
    running: bool = False
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    names: BlockNames = field(init=False)
    cached_tokens: int = 0
    preemptions: int = 0
    model_seconds: float = 0.0
    generator: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.names = BlockNames(self.request.tenant, self.request.adapter)
        self.generator = make_generator(self.request.sampling)

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
        return self.generated > 0 or self.request.sampling.prompt_logprobs is None

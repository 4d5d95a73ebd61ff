"""How requests went: filled while answers come, read by the metrics.

All times are seconds on one monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Answer", "Clock", "Event", "Record", "Status"]

Clock = Callable[[], float]
Status = Literal["completed", "failed", "truncated"]


@dataclass(frozen=True, slots=True)
class Event:
    """One arrival of output.

    Attributes:
        time: When it arrived.
        tokens: Tokens it carried; 0 for an event that only ends the request.
        model_seconds: Time inside the executor for it, where that is known.
    """

    time: float
    tokens: int
    model_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Answer:
    """What comes back for one request; the target fills it while it comes.

    Attributes:
        clock: Tells the time of events.
        keep_text: The text is wanted, for the next turn of a chat.
        events: What arrived, in order.
        texts: Its pieces of text, if they are wanted.
        prompt_tokens: As the target counts; None where it does not say.
        output_tokens: As the target counts; None for as many as the events carried.
        stopped: The model ended its answer, rather than a limit.
        parts: Seconds that the target says it spent, by what on: "queue", "prefill", "decode" and
            whatever else it tells; "total" is all of its time.
    """

    clock: Clock = time.perf_counter
    keep_text: bool = False
    events: list[Event] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    stopped: bool = False
    parts: dict[str, float] = field(default_factory=dict)

    def arrive(
        self,
        tokens: int = 0,
        *,
        text: str = "",
        model_seconds: float = 0.0,
        at: float | None = None,
    ) -> None:
        """Notes an arrival, now unless `at` says when."""
        self.events.append(Event(self.clock() if at is None else at, tokens, model_seconds))
        if self.keep_text and text:
            self.texts.append(text)

    @property
    def text(self) -> str:
        """All of the text, if it was wanted."""
        return "".join(self.texts)

    @property
    def counted_tokens(self) -> int:
        """Tokens of the output: those that the target counted, or that the events carried."""
        if self.output_tokens is not None:
            return self.output_tokens
        return sum(event.tokens for event in self.events)


@dataclass(frozen=True, slots=True)
class Record:
    """One request as it went.

    Attributes:
        request_id: Names the request.
        prompt_tokens: Length of the prompt; None where nobody counted.
        intended_send: When it was to be sent, which is what latencies count from.
        sent: When it was sent; later where the client or the target's connections held it up.
        end: When it was over, well or not.
        events: What arrived, in order.
        output_tokens: Tokens of the output.
        status: "completed", "failed", or "truncated" (ended before the output asked for).
        reason: Why it is not completed.
        parts: Seconds that the target says it spent, by what on.
    """

    request_id: str
    prompt_tokens: int | None
    intended_send: float
    sent: float
    end: float
    events: tuple[Event, ...]
    output_tokens: int
    status: Status
    reason: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def token_events(self) -> tuple[Event, ...]:
        """The events that carried tokens."""
        return tuple(event for event in self.events if event.tokens)

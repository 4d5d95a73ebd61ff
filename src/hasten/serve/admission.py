"""Who may begin now: bounds on what is in flight, and what each API key may use.

Everything runs on one event loop, so nothing here locks. What is refused is refused at once, before
anything is allocated for it.

Fairness is by key: a key's `concurrency` keeps it from filling the queue of a model, and its
buckets bound what it uses over time. Who waits in the queue is ordered by the engine, by
`Request.priority`; a full queue refuses whatever comes, however important, since what waits has
been accepted. Keys with equal limits and names share one account.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from hasten.errors import CapacityError, OverloadError, RateLimitError
from hasten.serve.jobs import Client
from hasten.serve.rates import Bucket, Pace
from hasten.serve.settings import Limits

__all__ = ["Admission", "Refusal", "Ticket"]

Refusal = Literal["draining", "queue", "server", "concurrency", "requests", "tokens"]

_REMEMBERED = 256
"""Idle models whose pace is kept."""
_RESTART_SECONDS = 5.0
"""What a client of a server that shuts down is told to wait."""


class Ticket:
    """A place in flight, held until it is released; a context manager that releases it."""

    __slots__ = ("_release",)

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Gives the place back; again does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


@dataclass(slots=True)
class _Turn:
    """A batch's request that waits."""

    sequences: int
    granted: asyncio.Future[Ticket]


@dataclass(slots=True)
class _Model:
    """What a model has in flight."""

    direct: int = 0
    batched: int = 0
    turns: deque[_Turn] = field(default_factory=deque)
    pace: Pace = field(default_factory=Pace)

    @property
    def idle(self) -> bool:
        return not (self.direct or self.batched or self.turns)


class _Account:
    """What a key uses."""

    def __init__(self, client: Client) -> None:
        requests, tokens = client.requests_per_minute, client.tokens_per_minute
        self.running = 0
        self.requests = None if requests is None else Bucket(requests)
        self.tokens = None if tokens is None else Bucket(tokens)

    def wait(self, now: float) -> tuple[float, Refusal]:
        """Seconds until its next request may come, 0 for now, and what it waits for."""
        requests = self.requests.wait(now, 1) if self.requests else 0.0
        tokens = self.tokens.wait(now, 0) if self.tokens else 0.0
        return (tokens, "tokens") if tokens > requests else (requests, "requests")

    def begin(self, now: float) -> None:
        if self.requests:
            self.requests.take(now, 1)


class Admission:
    """Lets requests in, or refuses them.

    Args:
        limits: Of the server.
        capacity: The sequences that an engine runs at once (`EngineOptions.max_sequences`), by
            model; asked each time. What follows calls a model by the name of its engine: adapters
            share it.
        refused: Called with the reason of each refusal, for metrics.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        limits: Limits,
        capacity: Callable[[str], int],
        *,
        refused: Callable[[Refusal], None] = lambda reason: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._capacity = capacity
        self._refused = refused
        self._clock = clock
        self._models: dict[str, _Model] = {}
        self._accounts: dict[tuple[object, ...], _Account] = {}
        self._direct = 0
        self._pace = Pace()
        self._tickets = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = asyncio.Event()

    @property
    def draining(self) -> bool:
        """Whether everything is refused."""
        return self._draining.is_set()

    def in_flight(self) -> dict[str, int]:
        """Sequences that were let in and have not ended, by model; batches' too."""
        return {
            name: entry.direct + entry.batched
            for name, entry in self._models.items()
            if entry.direct or entry.batched
        }

    def admit(self, client: Client, model: str, sequences: int = 1) -> Ticket:
        """Lets a request in; it is in flight until the ticket is released.

        Args:
            client: Who asks.
            model: The engine's name.
            sequences: That it will run at once: its outputs; 1 for embeddings, whatever the texts.

        Raises:
            RateLimitError: The key's limits; says when its next request may come.
            OverloadError: The model, or the server, has all it may have, or shuts down.
            CapacityError: Never fits, however idle the server is.
        """
        self._refuse_if_draining()
        bound = self._bound(model, sequences)
        now = self._clock()
        entry = self._models.get(model) or _Model()
        account = self._account(client)
        if account is not None:
            self._refuse_if_over(client, account, entry.pace, now)
        if (excess := entry.direct + sequences - bound) > 0:
            raise self._overload("queue", f"model {model!r}", bound, entry.pace, now, excess)
        most = self._limits.in_flight
        if (excess := self._direct + sequences - most) > 0:
            raise self._overload("server", "this server", most, self._pace, now, excess)
        return self._admitted(model, entry, account, sequences, now)

    def _admitted(
        self, model: str, entry: _Model, account: _Account | None, sequences: int, now: float
    ) -> Ticket:
        if self._direct == 0:
            self._pace.begin(now)
        if entry.direct == 0:
            entry.pace.begin(now)
        self._enter(model, entry)
        entry.direct += sequences
        self._direct += sequences
        if account is not None:
            account.begin(now)
            account.running += 1

        def release() -> None:
            ended = self._clock()
            entry.direct -= sequences
            self._direct -= sequences
            entry.pace.end(ended, sequences)
            self._pace.end(ended, sequences)
            if account is not None:
                account.running -= 1
            self._leave(model, entry)

        return Ticket(release)

    async def wait_turn(self, client: Client, model: str, sequences: int = 1) -> Ticket:
        """Lets a batch's request in as soon as there is room, first come, first served.

        Batches have a window of their own, twice the model's capacity: as many as run, and as many
        ready to follow. They take no place from requests, which the engine runs first by
        priority. The key's requests and tokens a minute hold for them too, its concurrency does
        not.

        Args:
            client: Whose batch it is.
            model: The engine's name.
            sequences: That it will run at once.

        Raises:
            OverloadError: The server shuts down.
            CapacityError: Never fits, however idle the server is.
        """
        self._bound(model, sequences)
        account = self._account(client)
        if account is not None:
            await self._within_rates(account)
        self._refuse_if_draining()
        entry = self._models.get(model) or _Model()
        if not entry.turns and self._has_turn(model, entry, sequences):
            return self._take_turn(model, entry, sequences)
        self._models[model] = entry
        turn = _Turn(sequences, asyncio.get_running_loop().create_future())
        entry.turns.append(turn)
        try:
            return await turn.granted
        except asyncio.CancelledError:
            if turn in entry.turns:
                entry.turns.remove(turn)
            elif not turn.granted.cancelled() and turn.granted.exception() is None:
                turn.granted.result().release()
            self._next_turns(model, entry)
            self._forget(model, entry)
            raise

    async def _within_rates(self, account: _Account) -> None:
        while not self.draining:
            now = self._clock()
            delay, _ = account.wait(now)
            if delay <= 0.0:
                account.begin(now)
                return
            try:
                await asyncio.wait_for(self._draining.wait(), delay)
            except TimeoutError:
                continue

    def _has_turn(self, model: str, entry: _Model, sequences: int) -> bool:
        # A request wider than the window runs alone.
        return not entry.batched or entry.batched + sequences <= 2 * self._capacity(model)

    def _take_turn(self, model: str, entry: _Model, sequences: int) -> Ticket:
        self._enter(model, entry)
        entry.batched += sequences

        def release() -> None:
            entry.batched -= sequences
            self._next_turns(model, entry)
            self._leave(model, entry)

        return Ticket(release)

    def _next_turns(self, model: str, entry: _Model) -> None:
        while entry.turns and self._has_turn(model, entry, entry.turns[0].sequences):
            turn = entry.turns.popleft()
            if not turn.granted.done():
                turn.granted.set_result(self._take_turn(model, entry, turn.sequences))

    def used(self, client: Client, tokens: int) -> None:
        """Charges a key for a request's prompt and output, which are known when it is over.

        So a key can get into debt; its requests are refused until that is paid off.
        """
        account = self._account(client)
        if account is not None and account.tokens is not None:
            account.tokens.take(self._clock(), tokens)

    def drain(self) -> None:
        """Refuses everything from now on, what waits for its turn included."""
        self._draining.set()
        for entry in self._models.values():
            while entry.turns:
                granted = entry.turns.popleft().granted
                if not granted.done():
                    granted.set_exception(self._shut_down())

    async def wait_idle(self) -> None:
        """Returns when nothing is in flight."""
        await self._idle.wait()

    def _enter(self, model: str, entry: _Model) -> None:
        self._models[model] = entry
        self._tickets += 1
        self._idle.clear()

    def _leave(self, model: str, entry: _Model) -> None:
        self._tickets -= 1
        if self._tickets == 0:
            self._idle.set()
        self._forget(model, entry)

    def _forget(self, model: str, entry: _Model) -> None:
        if entry.idle and len(self._models) > _REMEMBERED:
            del self._models[model]

    def _account(self, client: Client) -> _Account | None:
        limits = (client.concurrency, client.requests_per_minute, client.tokens_per_minute)
        if limits == (None, None, None):
            return None
        key = (client.name, client.tenant, *limits)  # that of the key's batches, too
        if key not in self._accounts:
            self._accounts[key] = _Account(client)
        return self._accounts[key]

    def _bound(self, model: str, sequences: int) -> int:
        """Sequences of requests that a model may have in flight."""
        bound = self._capacity(model) + self._limits.queue
        most = min(bound, self._limits.in_flight)
        if sequences > most:
            raise CapacityError(
                f"the request asks for {sequences} outputs at once",
                allowed=f"at most {most}",
                do="ask for fewer outputs, or send several requests",
            )
        return bound

    def _refuse_if_draining(self) -> None:
        if self.draining:
            raise self._shut_down()

    def _shut_down(self) -> OverloadError:
        self._refused("draining")
        return OverloadError(
            "the server is shutting down",
            retry_after=_RESTART_SECONDS,
            do="try again when it is back",
        )

    def _refuse_if_over(self, client: Client, account: _Account, pace: Pace, now: float) -> None:
        if client.concurrency is not None and account.running >= client.concurrency:
            self._refused("concurrency")
            raise RateLimitError(
                f"the API key {client.name!r} has {account.running} requests under way",
                retry_after=pace.estimate(now, 1),
                allowed=f"{client.concurrency} at once",
                do="wait for one of them to end",
            )
        delay, what = account.wait(now)
        if delay > 0.0:
            self._refused(what)
            limit = client.tokens_per_minute if what == "tokens" else client.requests_per_minute
            raise RateLimitError(
                f"the API key {client.name!r} has used up its {what}",
                retry_after=delay,
                allowed=f"{limit} a minute",
                do=f"try again in {delay:.3g} s",
            )

    def _overload(
        self, reason: Refusal, who: str, most: int, pace: Pace, now: float, excess: int
    ) -> OverloadError:
        self._refused(reason)
        wait = pace.estimate(now, excess)
        return OverloadError(
            f"{who} has as many requests as it takes",
            retry_after=wait,
            allowed=f"{most} sequences that run or wait",
            do=f"try again in {wait:.0f} s",
        )

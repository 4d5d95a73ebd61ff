"""Whether a run measured its target: the client, the clock and the neighbours under suspicion.

auditor = Auditor(pids=[server.pid])
result = run_load(target, workload, pattern, on_start=auditor.start)
audit = auditor.finish(result, pattern)
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise

import numpy as np

from hasten.errors import HastenError, UsageError
from hasten.measure.arrivals import ClosedLoop, OpenLoop, Pattern
from hasten.measure.energy import Counter, joules_between, read_energy
from hasten.measure.interference import CpuTimes, Interference, between, read_cpu_times
from hasten.measure.load import LoadResult, run_load
from hasten.measure.processes import ProcessUse, family, process_use, reset_peaks
from hasten.measure.records import Record
from hasten.measure.targets.target import Target
from hasten.measure.workload import Item, Workload

__all__ = [
    "Audit",
    "Auditor",
    "ClockCheck",
    "SendLag",
    "check_clock",
    "measure_client_rate",
    "send_lag",
]

SHARE_OF_CLIENT = 0.8  # of what the client can send or of a core; near its limit it adds latency
LATE_SECONDS = 0.001
LATE_SHARE = 0.01  # of the median latency, where that is more
MOST_LATE = 0.01  # of the requests
MOST_DRIFT = 1000e-6  # 0.1 %; network time turns a sound clock by 500e-6 at most
CLOCK_READS = 1000
PROBES = 1 << 18


@dataclass(frozen=True, slots=True)
class SendLag:
    """How much later than intended requests were sent.

    Attributes:
        n: Requests.
        p50: Seconds.
        p99: Seconds.
        max: Seconds.
        late: Share of the requests that were late by more than a ms and by more than 1 % of the
            median latency.
    """

    n: int
    p50: float
    p99: float
    max: float
    late: float


@dataclass(frozen=True, slots=True)
class ClockCheck:
    """What the clock of the figures is worth.

    Attributes:
        resolution: Least step seen between two readings, in seconds.
        backwards: Steps backwards among 1,000 readings.
        drift: How much faster than the raw clock it ran, as a share; None for runs under 0.1 s.
    """

    resolution: float
    backwards: int
    drift: float | None


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found.

    Attributes:
        problems: Why the figures do not stand for the target; none if they do.
        notes: What else a reader should know.
        seconds: How long was looked at.
        rate: Requests sent a second.
        client_rate: That the client can send at most, where that was measured.
        client_cpu: Share of one core that this process used.
        lag: Of sending; None without a request.
        clock: Of the figures.
        interference: Of others on the machine; None where it is not known.
        target: What the target's processes used; None where no process was named.
        joules: Of the processor's packages, everybody's work included; None where not known.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    rate: float
    client_rate: float | None
    client_cpu: float
    lag: SendLag | None
    clock: ClockCheck
    interference: Interference | None
    target: ProcessUse | None
    joules: float | None

    @property
    def valid(self) -> bool:
        """Whether the figures stand for the target."""
        return not self.problems

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return {**asdict(self), "valid": self.valid}


@dataclass(frozen=True, slots=True)
class _Reading:
    """All counters at one moment."""

    clock: float
    raw: float
    own: float
    cpu: CpuTimes | None
    target: ProcessUse
    energy: dict[str, Counter] | None


@dataclass(slots=True)
class Auditor:
    """Reads the counters before and after a run.

    Attributes:
        pids: Processes of the target on this machine; their children count, too.
        in_process: The target runs in this process, whose processor time is then not the client's.
    """

    pids: Collection[int] = ()
    in_process: bool = False
    _before: _Reading | None = field(default=None, init=False)
    _was_reset: bool = field(default=False, init=False)

    def start(self) -> None:
        """The run begins; call it after the warm-up."""
        self._was_reset = reset_peaks(family(self.pids))
        self._before = self._read()

    def finish(
        self,
        result: LoadResult,
        pattern: Pattern | None = None,
        *,
        client_rate: float | None = None,
    ) -> Audit:
        """The run has ended.

        Args:
            result: Of the run.
            pattern: How it was driven; None for one client in a closed loop.
            client_rate: As `measure_client_rate` has found it on this machine.

        Raises:
            UsageError: `start` was not called.
        """
        before, after = self._before, self._read()
        if before is None:
            raise UsageError("an audit that was not started")
        seconds = after.clock - before.clock
        drift = seconds / (after.raw - before.raw) - 1 if seconds >= 0.1 else None
        resolution, backwards = check_clock()
        target = None
        if self.pids:
            spent = after.target.cpu_seconds - before.target.cpu_seconds
            target = ProcessUse(max(0.0, spent), after.target.peak_rss_bytes)
        audit = Audit(
            problems=(),
            notes=(),
            seconds=seconds,
            rate=len(result.records) / result.window if result.window > 0 else 0.0,
            client_rate=client_rate,
            client_cpu=(after.own - before.own) / seconds if seconds > 0 else 0.0,
            lag=send_lag(result.records),
            clock=ClockCheck(resolution, backwards, drift),
            interference=between(before.cpu, after.cpu),
            target=target,
            joules=joules_between(before.energy, after.energy),
        )
        limited = isinstance(pattern, OpenLoop) and pattern.max_in_flight is not None
        return replace(
            audit,
            problems=tuple(_problems(audit, limited=limited, in_process=self.in_process)),
            notes=tuple(_notes(audit, was_reset=self._was_reset, in_process=self.in_process)),
        )

    def _read(self) -> _Reading:
        pids = family(self.pids)
        clock, raw = _clocks()
        own = os.times()
        return _Reading(
            clock=clock,
            raw=raw,
            own=own.user + own.system,
            cpu=read_cpu_times(target=pids),
            target=process_use(pids),
            energy=read_energy(),
        )


def check_clock() -> tuple[float, int]:
    """Reads the clock of the figures often.

    Returns:
        The least step seen, in seconds, and the number of steps backwards.
    """
    readings = [time.perf_counter() for _ in range(CLOCK_READS)]
    steps = [later - earlier for earlier, later in pairwise(readings)]
    forward = [step for step in steps if step > 0]
    return min(forward, default=math.inf), sum(step < 0 for step in steps)


def send_lag(records: Sequence[Record]) -> SendLag | None:
    """How much later than intended requests were sent; None without a request."""
    if not records:
        return None
    lags = np.array([record.sent - record.intended_send for record in records])
    latency = np.median([record.end - record.intended_send for record in records])
    late = lags > max(LATE_SECONDS, LATE_SHARE * float(latency))
    p50, p99 = (float(value) for value in np.percentile(lags, [50, 99]))
    return SendLag(len(records), p50, p99, float(lags.max()), float(late.mean()))


def measure_client_rate(target: Target, *, seconds: float = 1.0, clients: int = 16) -> float:
    """Requests a second that this client reaches against a target that does no work.

    Args:
        target: An echo, over the way by which the measured target is reached.
        seconds: How long to try.
        clients: In a closed loop.

    Raises:
        HastenError: No request completed.
    """
    workload = Workload("one word", None, (), (Item("x", 1),) * PROBES)
    result = run_load(target, workload, ClosedLoop(clients), duration=seconds)
    completed = sum(record.status == "completed" for record in result.records)
    if not completed or result.window <= 0:
        reasons = {record.reason for record in result.records if record.reason}
        raise HastenError(f"no request to the echo completed: {', '.join(sorted(reasons))}")
    return completed / result.window


def _clocks() -> tuple[float, float]:
    """The clock of the figures and the raw one, as near to each other as five tries allow."""
    tries = []
    for _ in range(5):
        before = time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
        clock = time.perf_counter()
        after = time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
        tries.append((after - before, clock, (before + after) / 2))
    _, clock, raw = min(tries)
    return clock, raw


def _problems(audit: Audit, *, limited: bool, in_process: bool) -> Iterator[str]:
    """Says why the figures do not stand for the target."""
    if audit.client_rate is not None and audit.rate > SHARE_OF_CLIENT * audit.client_rate:
        yield (
            f"invalid: {audit.rate:.0f} requests/s are near the {audit.client_rate:.0f} that this "
            f"client reaches (at most {SHARE_OF_CLIENT:.0%}); send fewer, or from more machines"
        )
    if not in_process and audit.client_cpu > SHARE_OF_CLIENT:
        yield (
            f"invalid: the client used {audit.client_cpu:.0%} of its one core (at most "
            f"{SHARE_OF_CLIENT:.0%}), so its own work is in the latencies; send fewer requests"
        )
    lag = audit.lag
    if lag is not None and lag.late > MOST_LATE and not limited:
        yield (
            f"invalid: {lag.late:.1%} of the requests were sent late (p99 {1000 * lag.p99:.1f} ms, "
            f"at most {MOST_LATE:.0%} may be): the client could not keep the schedule"
        )
    if audit.clock.backwards:
        yield f"invalid: the clock went backwards {audit.clock.backwards} times"
    drift = audit.clock.drift
    if drift is not None and abs(drift) > MOST_DRIFT:
        yield (
            f"invalid: the clock ran {drift:+.2%} against the raw one (at most {MOST_DRIFT:.2%}): "
            "somebody is turning it"
        )
    if audit.interference is not None:
        yield from audit.interference.problems()


def _notes(audit: Audit, *, was_reset: bool, in_process: bool) -> Iterator[str]:
    """Says what else a reader should know."""
    if audit.client_rate is None and not in_process:
        yield "how many requests this client can send was not measured"
    if audit.interference is None:
        yield "other load on the machine is not known: the run was too short to tell"
    if audit.target is not None and not was_reset:
        yield "peak memory of the target since it began: the kernel would not reset the mark"
    if audit.joules is None:
        yield "energy is not known: the kernel shows no counter that may be read (RAPL)"

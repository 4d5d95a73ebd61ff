"""A profile as figures: each phase by op, by kind of op, by layer and by part of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from hasten.generation.op_times import Phase, PhaseTimes
from hasten.generation.stopwatch import EngineProfile
from hasten.machine import Rates
from hasten.measure.profile.floors import Costs, Work
from hasten.measure.profile.ops import NamedOp, name_ops

__all__ = ["OpShare", "PhaseAccount", "account", "group"]

OTHERS = "around the ops"
"""Of the executor's call: checks, waking threads."""
UNMEASURED = ("engine", "executor")
"""What is left of the engine's and the executor's Python when all that has a clock is taken off."""


@dataclass(frozen=True, slots=True)
class OpShare:
    """What one op, or several alike, took in a phase.

    Attributes:
        kind: "linear", "attention"...
        label: What it does.
        shape: Of its matrix, or of what it computes.
        layer: Of the model; None outside of layers, and for ops of several.
        ops: How many they are.
        seconds: Of all steps together.
        waiting: Of them those in which the leading thread waited for others.
        work: What they had to do, where that is known.
        floor: Least seconds for it; None where it is not known.
    """

    kind: str
    label: str
    shape: str
    layer: int | None
    ops: int
    seconds: float
    waiting: float
    work: Work | None
    floor: float | None

    @property
    def over_floor(self) -> float | None:
        """Time over floor: 1 is as fast as the machine can."""
        return self.seconds / self.floor if self.floor else None

    def as_dict(self, steps: int) -> dict[str, object]:
        """JSON-ready values, a step."""
        return {
            "kind": self.kind,
            "label": self.label,
            "shape": self.shape,
            "layer": self.layer,
            "ops": self.ops,
            "seconds_per_step": self.seconds / steps,
            "waiting_s_per_step": self.waiting / steps,
            "bytes_per_step": None if self.work is None else self.work.bytes / steps,
            "operations_per_step": None if self.work is None else self.work.operations / steps,
            "floor_s_per_step": None if self.floor is None else self.floor / steps,
            "time_over_floor": self.over_floor,
        }


@dataclass(frozen=True, slots=True)
class PhaseAccount:
    """One phase of a profile.

    Attributes:
        phase: "prefill", "decode" or "mixed".
        steps: How many there were.
        tokens: That they computed.
        sequences: That took part, on average.
        context: Positions that a token saw, on average.
        seconds: Of the steps.
        parts: Seconds of the parts of the engine other than the model, of the executor's call
            around its ops, and of the executor around that.
        ops: Each op of the graph, in order.
        rates: What the machine reached on as many threads.
    """

    phase: Phase
    steps: int
    tokens: int
    sequences: float
    context: float
    seconds: float
    parts: Mapping[str, float]
    ops: tuple[OpShare, ...]
    rates: Rates

    @property
    def op_seconds(self) -> float:
        """Of all ops together."""
        return sum(op.seconds for op in self.ops)

    @property
    def accounted(self) -> float:
        """Share of the steps' time that ops and parts with a clock take; the rest is Python."""
        measured = sum(s for part, s in self.parts.items() if part not in UNMEASURED)
        return (self.op_seconds + measured) / self.seconds

    @property
    def floor(self) -> float:
        """Least seconds for what has a floor."""
        return sum(op.floor or 0.0 for op in self.ops)

    def by_kind(self) -> list[OpShare]:
        """Ops that do the same in each layer together, longest first."""
        found = group(self.ops, lambda op: (op.kind, op.label, op.shape))
        return sorted(found, key=lambda op: -op.seconds)

    def by_layer(self) -> list[OpShare]:
        """Ops of each layer together, in order; those outside of layers by themselves."""
        within = [op for op in self.ops if op.layer is not None]
        return group(within, lambda op: op.layer)

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return {
            "phase": self.phase,
            "steps": self.steps,
            "tokens": self.tokens,
            "sequences_per_step": self.sequences,
            "context": self.context,
            "seconds_per_step": self.seconds / self.steps,
            "tokens_per_s": self.tokens / self.seconds,
            "accounted": self.accounted,
            "floor_s_per_step": self.floor / self.steps,
            "parts_s_per_step": {part: s / self.steps for part, s in self.parts.items()},
            "rates": self.rates.as_dict(),
            "by_kind": [op.as_dict(self.steps) for op in self.by_kind()],
            "by_layer": [op.as_dict(self.steps) for op in self.by_layer()],
            "ops": [op.as_dict(self.steps) for op in self.ops],
        }


@dataclass(slots=True)
class _Sum:
    first: OpShare
    ops: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    floor: float = 0.0
    works: list[Work] = field(default_factory=list)
    layers: set[int | None] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)


def group(ops: Iterable[OpShare], key: Callable[[OpShare], object]) -> list[OpShare]:
    """Puts ops with equal keys together, in the order of their first ones.

    Floors add up: no op can make up for what another takes longer.
    """
    sums: dict[object, _Sum] = {}
    for op in ops:
        found = sums.setdefault(key(op), _Sum(op))
        found.ops += op.ops
        found.seconds += op.seconds
        found.waiting += op.waiting
        found.floor += op.floor or 0.0
        found.works += [] if op.work is None else [op.work]
        found.layers.add(op.layer)
        found.labels.add(op.label)
    return [_total(one) for one in sums.values()]


def _total(found: _Sum) -> OpShare:
    first, works = found.first, found.works
    alike = len(found.labels) == 1
    work = None
    if works:
        integer = any(one.integer for one in works)
        size, operations = sum(w.bytes for w in works), sum(w.operations for w in works)
        work = Work(size, operations, integer)
    return OpShare(
        kind=first.kind if alike else "all",
        label=first.label if alike else "",
        shape=first.shape if alike else "",
        layer=first.layer if len(found.layers) == 1 else None,
        ops=found.ops,
        seconds=found.seconds,
        waiting=found.waiting,
        work=work,
        floor=found.floor if works else None,
    )


def account(
    profile: EngineProfile, costs: Costs, rates: Mapping[Phase, Rates]
) -> dict[Phase, PhaseAccount]:
    """What each phase of a profile took, beside what the machine allows.

    Args:
        profile: Of an engine.
        costs: Of its model, as it ran.
        rates: What the machine reached on the threads of each phase.
    """
    named = name_ops(profile.ops.graph, costs.formats)
    return {
        phase: _account(phase, times, profile, named, costs, rates[phase])
        for phase, times in profile.ops.phases.items()
    }


def _account(
    phase: Phase,
    times: PhaseTimes,
    profile: EngineProfile,
    named: list[NamedOp],
    costs: Costs,
    rates: Rates,
) -> PhaseAccount:
    ops = tuple(
        _share(one, seconds, waiting, costs.work(one, times), rates)
        for one, seconds, waiting in zip(named, *times.ops.tolist(), strict=True)
    )
    parts = dict(profile.parts[phase])
    model = parts.pop("model")
    parts[OTHERS] = times.seconds - float(times.ops[0].sum())
    parts["executor"] = model - times.seconds
    seen = sum((position + 1) * count for position, count in times.positions.items())
    return PhaseAccount(
        phase=phase,
        steps=times.steps,
        tokens=times.tokens,
        sequences=times.sequences / times.steps,
        context=seen / times.tokens,
        seconds=profile.steps[phase],
        parts=parts,
        ops=ops,
        rates=rates,
    )


def _share(
    named: NamedOp, seconds: float, waiting: float, work: Work | None, rates: Rates
) -> OpShare:
    return OpShare(
        kind=named.kind,
        label=named.label,
        shape=named.shape,
        layer=named.layer,
        ops=1,
        seconds=seconds,
        waiting=waiting,
        work=work,
        floor=None if work is None else work.floor(rates),
    )

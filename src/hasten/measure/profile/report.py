"""The document of a profile by the contract `hasten.profile/1`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from hasten.generation import Engine
from hasten.generation.formats import MatrixFormat
from hasten.generation.op_times import Phase
from hasten.machine import Machine, Rates
from hasten.measure.interference import Interference
from hasten.measure.profile.account import OpShare, PhaseAccount, account
from hasten.measure.profile.bottleneck import Finding, facts_of, find_bottlenecks
from hasten.measure.profile.floors import FORMULAS, Costs
from hasten.measure.profile.run import Factor, Measured
from hasten.measure.profile.sweep import Sweep
from hasten.models.ops import Linear

__all__ = ["SCHEMA", "ProfileReport", "best_rates", "build_report", "threads_by_phase"]

SCHEMA = "hasten.profile/1"
QUIET = 0.1
"""Share of the processor that others may use."""


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """Where the time of a model goes.

    Attributes:
        target: What was measured and how it ran.
        workload: What it was asked.
        machine: Where.
        phases: What each took, op by op.
        factors: What each stage of a request's way took.
        seconds: A request's share of the whole, which the factors add up to.
        findings: What holds each phase up, what explains most of it first.
        interference: Who else used the processor; None where it is not known.
        sweeps: What settings change.
    """

    target: Mapping[str, object]
    workload: Mapping[str, object]
    machine: Machine
    phases: Mapping[Phase, PhaseAccount]
    factors: Sequence[Factor]
    seconds: float
    findings: Sequence[Finding]
    interference: Interference | None
    sweeps: Sequence[Sweep] = ()

    def with_sweeps(self, sweeps: Sequence[Sweep]) -> ProfileReport:
        """The same with what settings change."""
        return replace(self, sweeps=sweeps)

    @property
    def notes(self) -> list[str]:
        """What a reader must know."""
        found = [
            f"{phase}: ops and measured parts account for {one.accounted:.1%} of the steps"
            for phase, one in self.phases.items()
        ]
        if any(one.over_floor is not None and one.over_floor < 1 for one in self._kinds()):
            found.append(
                "time below the floor: a cache held part of what was read, or the machine was "
                "slower while it was probed"
            )
        shared = self.interference
        if shared is not None and shared.others + shared.steal > QUIET:
            found.append(
                f"others used {shared.others + shared.steal:.0%} of the processor meanwhile; "
                "stop them and measure again"
            )
        return found

    def as_dict(self) -> dict[str, object]:
        """The document of the contract."""
        return {
            "schema": SCHEMA,
            "target": dict(self.target),
            "workload": dict(self.workload),
            "machine": self.machine.as_dict(),
            "phases": {phase: one.as_dict() for phase, one in self.phases.items()},
            "seconds_per_request": self.seconds,
            "factors": [asdict(factor) for factor in self.factors],
            "findings": [asdict(finding) for finding in self.findings],
            "interference": None if self.interference is None else asdict(self.interference),
            "sweeps": [asdict(sweep) for sweep in self.sweeps],
            "formulas": FORMULAS,
            "notes": self.notes,
        }

    def _kinds(self) -> list[OpShare]:
        return [kind for one in self.phases.values() for kind in one.by_kind()]


def threads_by_phase(engine: Engine, measured: Measured) -> dict[Phase, int]:
    """Threads of the average step of each phase."""
    return {
        phase: engine.thread_choice.for_tokens(max(1, times.tokens // times.steps))
        for phase, times in measured.profile.ops.phases.items()
    }


def best_rates(probes: Sequence[Rates]) -> Rates:
    """The best of several probes of as many threads: what else runs can only slow them."""
    return replace(
        probes[0],
        bandwidth=max(one.bandwidth for one in probes),
        int8=max(one.int8 for one in probes),
        fp32=max(one.fp32 for one in probes),
    )


def build_report(
    *,
    engine: Engine,
    measured: Measured,
    rates: Mapping[Phase, Rates],
    target: Mapping[str, object],
    workload: Mapping[str, object],
    machine: Machine,
    interference: Interference | None,
) -> ProfileReport:
    """Turns what was measured into a report.

    Args:
        engine: That was profiled.
        measured: Its profile.
        rates: What the machine reached on the threads of each phase.
        target: What it was and how it ran.
        workload: What it was asked.
        machine: Where.
        interference: Who else used the processor.
    """
    options = engine.options
    costs = Costs(engine.model.config, engine.formats, options.kv)
    phases = account(measured.profile, costs, rates)
    widest = _widest(engine, measured)
    findings = [
        finding
        for one in phases.values()
        for finding in find_bottlenecks(
            facts_of(
                one, executor=options.executor, weights=widest, kv=options.kv, fused=options.fuse
            )
        )
    ]
    return ProfileReport(
        target=target,
        workload=workload,
        machine=machine,
        phases=phases,
        factors=measured.factors(),
        seconds=measured.seconds / measured.requests,
        findings=findings,
        interference=interference,
    )


def _widest(engine: Engine, measured: Measured) -> str:
    """The kind of format that most bytes of the products' matrices are in."""
    sizes: Counter[str] = Counter()
    for op in measured.profile.ops.graph.ops:
        if isinstance(op, Linear):
            form = MatrixFormat.from_name(engine.formats[op.weights[0]], op.columns)
            sizes[form.kind] += form.nbytes((sum(op.rows), op.columns))
    return sizes.most_common(1)[0][0]

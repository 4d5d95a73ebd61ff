"""The search: propose, measure accuracy and speed, refuse with reasons, choose.

It knows nothing of engines: a `Laboratory` measures, so the decisions can be tested with made-up
figures. Phases, cheap refusals first:

1. *Screen* every weight format for accuracy on the calibration text.
2. *Probe* the speed of all of them in a short interleaved race with the original: what is
   refused for its accuracy too, so that the report shows what the budget costs.
3. *Mix*: where a format was refused for its accuracy and is smaller than the fastest that passed,
   measure how sensitive each layer is to it and give it to the layers that bear it.
4. *Passes*: what changes the model itself takes longest to make, so only those candidates are made
   that are predicted to beat the leader, the most promising first, while time lasts.
5. *Vary* KV format, threads, tokens of a step, fusion and kernels of the leader; a short race
   leaves out what is far slower.
6. *Final*: a longer race of the finalists, and of what is on the Pareto front, with the original;
   their accuracy on the evaluation text, which no earlier phase has seen, and whether passes
   that say they change nothing keep to that; the race once more.
7. *Tail*: where nearly all requests have bounds to keep, many requests of the best alone.

The fastest finalist that is inside the budget with its interval, faster than the original with its
interval, and keeps the objective's bounds, wins. Without one the original does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from hasten.errors import HastenError
from hasten.generation.formats import MatrixFormat
from hasten.measure.accuracy import Accuracy
from hasten.optimize.candidates import (
    Candidate,
    operator_choices,
    original,
    settings_for,
    thread_counts,
)
from hasten.optimize.front import pareto_front
from hasten.optimize.gate import Budget, Measured, proof_confidence
from hasten.optimize.passes.interface import Prediction
from hasten.optimize.prediction import predicted_speedup
from hasten.optimize.proof import Prover, prove_finalists
from hasten.optimize.search_plan import SearchPlan
from hasten.optimize.sensitivity import Part, largest_admitted, measure_parts
from hasten.optimize.speed import Duel, Effort, speedup
from hasten.optimize.stages import Progress, Stages
from hasten.optimize.tail_search import Repeater, TailSearch
from hasten.optimize.trial import (
    Trial,
    best_first,
    divergence,
    is_far_behind,
    why_not_faster,
    why_slower,
)

__all__ = ["Laboratory", "Search"]

_LEAST_SAVING = 0.03
"""A mixture must promise at least this share of fewer weight bytes to be worth measuring."""

_CHEAP_PARTS = 5.0
"""How many times cheaper than the mean the least sensitive parts may be."""

_PROMISING = 1.02
"""A pass must promise to be this many times faster than the leader to be tried."""

_STAGES = {
    "screen": 13.0,
    "probe": 6.0,
    "mix": 12.0,
    "passes": 32.0,
    "vary": 6.0,
    "race": 12.0,
    "prove": 5.0,
    "again": 10.0,
    "front": 4.0,
}
"""How long each stage takes, in per cent of a whole search of SmolLM2: between two processors."""

_TAIL_STAGE = 40.0
"""Beside these: what showing a bound on nearly all requests takes."""


class Laboratory(Prover, Repeater, Protocol):
    """What can be measured about a candidate."""

    def why_unfit(self, candidate: Candidate) -> str | None:
        """Why the candidate cannot run this model at all, or None."""
        ...

    def formats(self, candidate: Candidate) -> Mapping[str, MatrixFormat]:
        """The format that each matrix would run in; equal formats are equal weights."""
        ...

    def screen(self, candidate: Candidate) -> Measured:
        """Accuracy against the original on what the search may look at."""
        ...

    def glance(self, candidate: Candidate) -> Accuracy:
        """Accuracy against the original on a part of the calibration text."""
        ...

    def race(
        self, candidates: Sequence[Candidate], effort: Effort, on_round: Callable[[float], None]
    ) -> Mapping[Candidate, Duel]:
        """Times the candidates in interleaved rounds; the first is the original.

        `on_round` is told the share that is done.
        """
        ...

    def weights_bytes(self, candidate: Candidate) -> int:
        """Bytes of weights the candidate reads; it has been screened or fits by its shapes."""
        ...

    def memory_bytes(self, candidate: Candidate) -> int:
        """All that the candidate holds; it has been screened."""
        ...

    def predict(self, candidate: Candidate) -> Prediction:
        """What the candidate's passes are expected to save."""
        ...

    def parts(self, base: Candidate, coarse: str) -> Mapping[Part, int]:
        """The parts whose formats may be mixed, each with the bytes that `coarse` saves."""
        ...


class Search:
    """One search over one model.

    Args:
        laboratory: Measures candidates.
        budget: What may be lost.
        plan: How much to measure.
        progress: Told what is being done.

    Attributes:
        original: The original's trial.
        trials: All candidates so far.
        remarks: What there is to say beside the figures.
    """

    def __init__(
        self, laboratory: Laboratory, budget: Budget, plan: SearchPlan, progress: Progress
    ) -> None:
        self._lab = laboratory
        self._budget = budget
        self._plan = plan
        tail = {"tail": _TAIL_STAGE} if plan.objective.tails else {}
        self._stages = Stages(_STAGES | tail, progress)
        self.original = Trial(original(plan.threads), status="original")
        self.trials: list[Trial] = []
        self.remarks: list[str] = []

    def run(self) -> Trial:
        """Searches and returns the winner, which may be the original."""
        for candidate in self._plan.candidates:
            self._add(candidate)
        self._screen_all()
        self._probe()
        self._mix()
        self._try_passes()
        self._vary()
        self._final()
        return self._choose()

    def best_so_far(self) -> Trial:
        """The fastest that no measurement speaks against yet; for a search that was stopped."""
        left = [*self._open(), *self._passed()]
        alive = [trial for trial in left if trial.timings and trial.accuracy]
        inside = [trial for trial in alive if self._inside(trial)]
        return min([*inside, self.original], key=lambda trial: trial.rank)

    def _screen_all(self) -> None:
        waiting = self._open()
        for index, trial in enumerate(waiting):
            self._stages.tell("screen", trial.candidate.label, index / len(waiting))
            same = self._same_as(trial)
            if same is None:
                self._screen(trial)
            else:
                trial.refuse(f"the same weights as {same.candidate.label}")

    def _probe(self) -> None:
        measured = [trial for trial in self.trials if trial.screened is not None]
        self._race("probe", f"{len(measured)} candidates", measured, self._plan.probe)
        self._refuse_slow()
        ranked = sorted(self._open(), key=lambda trial: trial.rank)
        for trial in ranked[self._plan.finalists :]:
            trial.status, trial.reason = "slower", why_slower(trial, ranked[0])

    def _refuse_slow(self) -> None:
        """A few rounds only tell a clear loss; the last race decides the rest."""
        for trial in self._open():
            if trial.speedup is not None and trial.speedup.high < 1:
                trial.refuse(why_not_faster(trial))

    def _mix(self) -> None:
        leader = self._leader()
        if leader is None or self._plan.mixed_seconds <= 0:
            return
        found = self._coarser_format(leader)
        if found is None:
            return
        coarse, saved = found
        deadline = self._lab.seconds() + self._plan.mixed_seconds
        label = f"sensitivity of each layer to {coarse}"

        def go_on(done: float) -> bool:
            self._stages.tell("mix", label, done * 0.8)
            in_time = self._lab.seconds() < deadline
            if not in_time:
                self.remarks.append(f"mixed precision: time was up when {done:.0%} was measured")
            return in_time

        ordered = measure_parts(
            saved,
            leader.candidate,
            coarse,
            measure=self._lab.glance,
            bearable=self._budget.expects,
            go_on=go_on,
        )
        mixture = largest_admitted(ordered, leader.candidate, coarse, self._screen_expects)
        if mixture is None:
            self.remarks.append(f"mixed precision: no layer bears {coarse} inside the budget")
            return
        self._screen(self._add(mixture))

    def _coarser_format(self, leader: Trial) -> tuple[str, Mapping[Part, int]] | None:
        """Of the formats refused for their accuracy, that which loses least and is worth mixing.

        Returns:
            The format and the bytes that it saves in each part; None if none is worth it.
        """
        refused = [
            trial
            for trial in self.trials
            if trial.status == "refused"
            and not trial.candidate.overrides
            and trial.screened is not None
            and not self._budget.admits(trial.screened)
        ]
        for trial in sorted(refused, key=divergence):
            coarse = trial.candidate.weights
            saved = self._lab.parts(leader.candidate, coarse)
            if self._worth_mixing(leader, trial, sum(max(0, count) for count in saved.values())):
                return coarse, saved
        return None

    def _worth_mixing(self, leader: Trial, coarser: Trial, saving: int) -> bool:
        """Whether the bytes that the budget may buy are worth the measurements.

        Losses of parts add up roughly, so the budget left buys about its share of what the format
        costs as a whole; the cheapest parts may cost several times less than the mean.
        """
        least = _LEAST_SAVING * (leader.weights_bytes or 0)
        if saving < least:
            return False
        room = self._budget.kl
        cost = divergence(coarser) - divergence(leader)
        if room is None or cost <= 0 or not math.isfinite(cost):
            return True
        if saving * _CHEAP_PARTS * (room - divergence(leader)) / cost >= least:
            return True
        self.remarks.append(
            f"mixed precision was not tried: {coarser.candidate.weights} costs {cost:.2f} nats"
            f" of KL as a whole, so the budget buys less than {_LEAST_SAVING:.0%} of the bytes"
        )
        return False

    def _screen_expects(self, candidate: Candidate) -> bool:
        return self._budget.expects(self._lab.screen(candidate))

    def _try_passes(self) -> None:
        """Makes the promising models, screens them, and times what was screened."""
        plan = self._plan
        ordered = sorted(plan.changed, key=lambda one: -(self._predicted(one) or math.inf))
        waiting = [(one, False) for one in ordered]
        waiting = [(one, True) for one in plan.asked] + waiting
        deadline = self._lab.seconds() + plan.pass_seconds
        made = []
        for index, (candidate, asked) in enumerate(waiting):
            trial = self._add(candidate)
            width = 0.8 / len(waiting)
            self._stages.tell("passes", candidate.label, index * width, slot=width)
            reason = None if asked else self._why_not_promising(trial, deadline)
            if reason is not None:
                trial.status, trial.reason = "slower", reason
                continue
            self._screen(trial)
            if trial.screened is not None:
                made.append(trial)
        if made:
            self._race("passes", f"speed of {len(made)} changed models", made, plan.probe)
            self._refuse_slow()

    def _why_not_promising(self, trial: Trial, deadline: float) -> str | None:
        if self._lab.seconds() > deadline:
            return "not tried: time was up"
        predicted, leader = self._predicted(trial.candidate), self._leader()
        if predicted is None or leader is None or leader.speedup is None:
            return None
        if predicted >= _PROMISING * leader.speedup.estimate:
            return None
        return (
            f"not tried: predicted to run {predicted:.2f} times as fast as the original, against"
            f" {leader.speedup.estimate:.2f} of {leader.candidate.label}"
        )

    def _predicted(self, candidate: Candidate) -> float | None:
        return predicted_speedup(candidate, self.trials, self._lab.predict)

    def _vary(self) -> None:
        leader = self._leader()
        if leader is None:
            return
        base = leader.candidate
        variants = [base.with_kv("int8")]
        variants += [base.with_threads(count) for count in thread_counts(base.threads)]
        variants += settings_for(base, self._plan.objective.shape)
        if self._plan.isas is not None:
            variants += operator_choices(base, self._plan.isas)
        for index, candidate in enumerate(variants):
            self._stages.tell("vary", candidate.label, 0.5 * index / len(variants))
            self._screen(self._add(candidate))
        self._leave_behind(leader, [one for one in self._open() if one.candidate in variants])

    def _leave_behind(self, leader: Trial, variants: Sequence[Trial]) -> None:
        """A few rounds tell what is far slower; the last race has more time for the rest."""
        if not variants:
            return
        field = [leader, *variants]
        self._race("vary", f"speed of {len(variants)} variants", field, self._plan.probe)
        for trial in variants:
            if is_far_behind(trial, leader):
                trial.status, trial.reason = "slower", why_slower(trial, leader)

    def _final(self) -> None:
        finalists = self._open()
        shown = [trial for trial in pareto_front(self.trials) if trial not in finalists]
        field = [*finalists, *shown]
        first = self._race("race", f"{len(field)} finalists", field, self._plan.final)
        self._refuse_slow()
        self._keep_bounds(self._open())
        prove_finalists(
            sorted(self._open(), key=lambda trial: trial.rank),
            self._lab,
            self._budget,
            lambda label, share: self._stages.tell("prove", label, share),
        )
        front = pareto_front(self.trials)
        field = [trial for trial in field if trial.status == "passed" or trial in front]
        if field:
            # Minutes after the first: what drifts as slowly as that is then in the interval.
            self._race("again", f"{len(field)} finalists", field, self._plan.final, first)
        for trial in self._passed():
            if trial.speedup is None or trial.speedup.low <= 1:
                trial.refuse(why_not_faster(trial))
        self.remarks += self._keep_bounds(self._passed())
        self._prove_front()

    def _keep_bounds(self, trials: Sequence[Trial]) -> list[str]:
        """Refuses what does not keep the objective's bounds; if nothing does, it says so."""
        objective = self._plan.objective
        short = {
            trial.candidate: "; ".join(objective.shortfalls(trial.timings, trial.memory_bytes))
            for trial in trials
            if trial.timings is not None
        }
        if all(short.values()):
            fastest = min(trials, key=lambda trial: trial.rank, default=None)
            return [] if fastest is None else [self._none("keeps", short[fastest.candidate])]
        for trial in trials:
            if short[trial.candidate]:
                trial.refuse(f"outside the objective: {short[trial.candidate]}")
        return []

    def _none(self, does: str, reason: str) -> str:
        name = self._plan.objective.name
        return f"no candidate {does} the bounds of {name!r}; the fastest: {reason}"

    def _prove_front(self) -> None:
        """What the report shows as the front has to be proved, too."""
        front = pareto_front(self.trials)
        for index, trial in enumerate(front):
            if trial.proved is None:
                self._stages.tell("front", trial.candidate.label, index / len(front))
                trial.proved = self._lab.prove(trial.candidate, proof_confidence(1))

    def _choose(self) -> Trial:
        passed = self._passed()
        if not passed:
            self._stages.done()
            self.original.reason = "no candidate was both faster and inside the budget"
            return self.original
        tails = TailSearch(
            self._lab,
            self._plan.objective,
            self._plan.tail_seconds,
            lambda detail, share: self._stages.tell("tail", detail, share),
        )
        winner, missed = tails.choose(best_first(passed))
        if missed is not None:
            self.remarks.append(self._none("is shown to keep", missed))
        self._stages.done()
        winner.status = "chosen"
        winner.reason = "; ".join(["the fastest inside the budget", *map(str, winner.tails)])
        for trial in self._passed():
            trial.reason = why_slower(trial, winner)
        return winner

    def _race(
        self,
        phase: str,
        detail: str,
        trials: Sequence[Trial],
        effort: Effort,
        earlier: Mapping[Candidate, Duel] | None = None,
    ) -> Mapping[Candidate, Duel]:
        """Times trials; what was run earlier of the same race counts with it."""
        field = [self.original, *trials]
        self._stages.tell(phase, detail, 0)
        duels = self._lab.race(
            [trial.candidate for trial in field],
            effort,
            lambda share: self._stages.tell(phase, detail, share),
        )
        for trial in field:
            duel = duels[trial.candidate]
            if earlier is not None:
                duel = earlier[trial.candidate].followed_by(duel)
            trial.timings, trial.speedup = duel.after, speedup(duel, seed=self._plan.seed)
        return duels

    def _screen(self, trial: Trial) -> None:
        try:
            unfit = self._lab.why_unfit(trial.candidate)
            if unfit is not None:
                trial.refuse(unfit)
                return
            trial.screened = self._lab.screen(trial.candidate)
        except HastenError as error:
            trial.refuse(f"could not be made: {error.what}")
            return
        trial.weights_bytes = self._lab.weights_bytes(trial.candidate)
        trial.memory_bytes = self._lab.memory_bytes(trial.candidate)
        hopeless = self._budget.why_hopeless(trial.screened)
        if hopeless is not None:
            trial.refuse(hopeless)

    def _same_as(self, trial: Trial) -> Trial | None:
        """An earlier candidate that runs the same: a format may be what the file holds anyway."""
        candidate = trial.candidate
        if self._lab.why_unfit(candidate) is not None:
            return None
        formats = self._lab.formats(candidate)
        for earlier in self.trials[: self.trials.index(trial)]:
            other = earlier.candidate
            if (
                earlier.screened is not None
                and (other.kv, other.threads) == (candidate.kv, candidate.threads)
                and self._lab.formats(other) == formats
            ):
                return earlier
        return None

    def _add(self, candidate: Candidate) -> Trial:
        trial = Trial(candidate)
        self.trials.append(trial)
        return trial

    def _open(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.status == "open"]

    def _passed(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.status == "passed"]

    def _leader(self) -> Trial | None:
        """The fastest open candidate; those inside the budget on the calibration text first."""
        ready = [trial for trial in self._open() if trial.timings]
        return min(ready, key=lambda one: (not self._inside(one), one.rank), default=None)

    def _inside(self, trial: Trial) -> bool:
        return trial.evidence is not None and self._budget.expects(trial.evidence)

    def tell_pass(self, doing: str, share: float) -> None:
        """Passes on how far a pass has come.

        Args:
            doing: What the pass does.
            share: Of the pass.
        """
        self._stages.tell_pass(doing, share)

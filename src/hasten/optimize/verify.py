"""Proves an old artefact anew: the same text, the same request, this machine and this version."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from hasten import __version__
from hasten.generation.native import choose_isa, isa_of_recipe
from hasten.machine import available_cores, detect_machine, memory_limit
from hasten.measure.accuracy import Accuracy
from hasten.measure.statistics import Interval
from hasten.models import Model, load_model
from hasten.optimize.candidates import Candidate, Operators, original
from hasten.optimize.claim_check import ClaimCheck, check_claim, claim_of
from hasten.optimize.gate import Budget
from hasten.optimize.laboratory import EngineLaboratory, Material
from hasten.optimize.objective import Objective
from hasten.optimize.passes.interface import Need, Prediction, Workshop
from hasten.optimize.pipeline import prepare_material
from hasten.optimize.provenance import (
    Sameness,
    compare_weights,
    find_source,
    recipe_corpus,
    recut_windows,
    require_recipe,
)
from hasten.optimize.speed import Effort, RequestShape, speedup
from hasten.optimize.stages import Progress, Stages
from hasten.optimize.tail import TailBound, TailFinding
from hasten.optimize.tail_search import TailSearch

__all__ = ["SCHEMA", "Check", "TailCheck", "Verification", "verify"]

SCHEMA = "hasten.verification/1"
_EFFORT = Effort(rounds=18, least=6, seconds=75.0, blocks=6)
_TAIL_SECONDS = 300.0
"""For bounds on the slowest requests, which take many of them."""
_STAGES = {"screen": 30.0, "race": 70.0}
_CLAIM_STAGE = 100.0
_TAIL_STAGE = 200.0

Verdict = Literal["inside", "overlaps", "better", "worse"]

_TITLES = {
    "kl_divergence": "KL divergence",
    "perplexity_ratio": "perplexity ratio",
    "top1_agreement": "top-1 agreement",
    "speedup": "speed-up",
}
_MORE_IS_BETTER = ("top1_agreement", "speedup")


@dataclass(frozen=True, slots=True)
class Check:
    """A figure of the recipe beside the same figure now.

    Attributes:
        name: As in the recipe.
        was: Then.
        now: Measured again.
    """

    name: str
    was: Interval
    now: Interval

    @property
    def title(self) -> str:
        """As a reader calls it."""
        return _TITLES[self.name]

    @property
    def verdict(self) -> Verdict:
        """Where the figure of now lies.

        "inside" the interval of then; outside, but with an interval that "overlaps" it; or beyond
        it on the "better" or "worse" side.
        """
        if self.was.low <= self.now.estimate <= self.was.high:
            return "inside"
        if self.now.low <= self.was.high and self.was.low <= self.now.high:
            return "overlaps"
        more = self.now.estimate > self.was.high
        return "better" if more == (self.name in _MORE_IS_BETTER) else "worse"

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        figures = {"was": self.was.as_dict(), "is": self.now.as_dict()}
        return {"name": self.name, **figures, "verdict": self.verdict}

    def row(self) -> list[str]:
        """As in `Verification.rows`."""
        return [self.title, _figures(self.was), _figures(self.now), self.verdict]


@dataclass(frozen=True, slots=True)
class TailCheck:
    """A bound on the slowest requests: what the recipe says, and the requests of now.

    Attributes:
        was: As `TailFinding.as_dict` of then.
        now: Measured again.
    """

    was: Mapping[str, Any]
    now: TailFinding

    @property
    def verdict(self) -> Literal["kept", "not shown", "worse"]:
        """Whether the requests of now show that it is kept; "worse" if only those of then did."""
        if self.now.kept:
            return "kept"
        return "worse" if self.was["kept"] else "not shown"

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"was": dict(self.was), "is": self.now.as_dict(), "verdict": self.verdict}

    def row(self) -> list[str]:
        """As in `Verification.rows`."""
        counts = ((self.was["late"], self.was["requests"]), (self.now.late, self.now.requests))
        figures = [f"{late} of {requests} late" for late, requests in counts]
        return [str(self.now.bound), *figures, self.verdict]


@dataclass(frozen=True, slots=True)
class Verification:
    """What became of an artefact's claims.

    Attributes:
        artefact: Its directory.
        weights: Whether they are those that the recipe speaks of, bit for bit.
        checks: Each claim with its interval then and now; none if nothing was claimed.
        claims: Of steps that say they change nothing, if there were any.
        tails: Each bound on the slowest requests, if there were any.
        refused: What is outside the recipe's budget now, or None.
        versions: Of what made the artefact, and of what runs now.
        machines: The processors of then and now.
        remarks: What else differs.
    """

    artefact: Path
    weights: Sameness
    checks: tuple[Check, ...]
    claims: tuple[ClaimCheck, ...]
    tails: tuple[TailCheck, ...]
    refused: str | None
    versions: Mapping[str, Mapping[str, str]]
    machines: Mapping[str, Mapping[str, Any]]
    remarks: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether weights are the same, accuracy is inside the budget, and no figure is worse."""
        kept = self.weights != "different" and self.refused is None
        return kept and all(one.verdict != "worse" for one in self._all())

    def rows(self) -> list[list[str]]:
        """For a table with the columns figure, was, is, inside."""
        return [one.row() for one in self._all()]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "schema": SCHEMA,
            "artefact": str(self.artefact),
            "holds": self.holds,
            "weights": self.weights,
            "checks": [check.as_dict() for check in self.checks],
            "claims": [check.as_dict() for check in self.claims],
            "tails": [check.as_dict() for check in self.tails],
            "outside_budget": self.refused,
            "versions": {name: dict(one) for name, one in self.versions.items()},
            "machines": {name: dict(one) for name, one in self.machines.items()},
            "remarks": list(self.remarks),
        }

    def _all(self) -> list[Check | ClaimCheck | TailCheck]:
        return [*self.checks, *self.claims, *self.tails]


def verify(
    directory: str,
    *,
    progress: Progress,
    source: str | None = None,
    text: Path | None = None,
    effort: Effort = _EFFORT,
    tail_seconds: float = _TAIL_SECONDS,
) -> Verification:
    """Measures what the recipe of an artefact claims once more.

    Args:
        directory: The artefact.
        progress: Told what is being done, and the share that is done.
        source: Where the source is, if elsewhere than the recipe says.
        text: The file that the recipe's texts were cut from, unless it was the default text.
        effort: How long to race the artefact with its source.
        tail_seconds: How long to run the artefact by itself where bounds on its slowest requests
            were asked for.

    Raises:
        UsageError: No artefact, or the text is missing.
        ModelFileError: The source or the text are not what they were.
        HastenError: One of the two cannot be run here.
    """
    artefact = load_model(directory)
    recipe = require_recipe(artefact)
    model = find_source(recipe, source)
    material = _material(recipe, model, text)
    remarks: list[str] = []
    before, after = _candidates(recipe, remarks)
    promises = recipe["after"].get("tails", [])
    tail = {"tail": _TAIL_STAGE} if promises else {}
    claim = claim_of(recipe, remarks)
    held = {} if claim is None else {"claim": _CLAIM_STAGE}
    stages = Stages(_STAGES | tail | held, progress)
    request = material.shape.input_tokens + material.shape.output_tokens
    with EngineLaboratory(
        lambda steps: artefact if steps else model,
        context=min(max(request, material.evaluation.context), model.config.max_position),
        material=material,
        threads=before.threads,
        memory_limit=memory_limit(),
        seed=recipe.get("seed", 0),
    ) as laboratory:
        stages.tell("screen", "the artefact", 0.0)
        measured = laboratory.prove(after, 0.95)
        race = partial(stages.tell, "race", "the artefact with its source")
        race(0.0)
        duel = laboratory.race([before, after], effort, race)[after]
        bounds = tuple(TailBound(one["metric"], one["percentile"], one["ms"]) for one in promises)
        objective = Objective("as proved", material.shape, tails=bounds)
        slowest = TailSearch(laboratory, objective, tail_seconds, partial(stages.tell, "tail"))
        tails = slowest.measure(after, duel.after.seconds)
        remarks += laboratory.remarks
    claims = []
    if claim is not None:
        stages.tell("claim", "steps that say they change nothing", 0.0, slot=0.9)
        again = stages.tell_pass
        claims.append(check_claim(claim, recipe, model, after, material, again, text))
    now = _intervals(measured.text) | {"speedup": speedup(duel, seed=recipe.get("seed", 0))}
    return Verification(
        artefact=artefact.path,
        weights=compare_weights(recipe, artefact.path),
        checks=tuple(_checks(recipe, now)),
        claims=tuple(claims),
        tails=tuple(map(TailCheck, promises, tails)),
        refused=_budget(recipe, remarks).why_refused(measured),
        versions={
            "was": recipe["versions"],
            "is": {"hasten": __version__, "python": platform.python_version()},
        },
        machines={"was": recipe["machine"], "is": detect_machine().as_dict()},
        remarks=tuple(remarks),
    )


def _budget(recipe: Mapping[str, Any], remarks: list[str]) -> Budget:
    """The limits on text: the recipe does not hold the labelled items."""
    budget = Budget(**recipe["budget"])
    if budget.task_points is None:
        return budget
    remarks.append("labelled items were not answered again: `hasten eval --task` does that")
    return replace(budget, task_points=None)


def _material(recipe: Mapping[str, Any], model: Model, text: Path | None) -> Material:
    """Text and prompts of the recipe; the calibration text is not looked at again."""
    windows = recut_windows(recipe, "evaluation", model.tokenizer, text)
    objective = recipe["objective"]
    shape = RequestShape(
        objective["input_tokens"],
        objective["output_tokens"],
        objective["concurrent"],
        objective.get("shared_tokens", 0),
    )
    material = prepare_material(
        model,
        recipe_corpus(recipe, "evaluation", text),
        shape,
        tokens=windows.scored,
        quick=True,
        seed=recipe.get("seed", 0),
    )
    return replace(material, calibration=windows, evaluation=windows)


def _candidates(recipe: Mapping[str, Any], remarks: list[str]) -> tuple[Candidate, Candidate]:
    """The source and the artefact, each with as many threads as then if there are as many cores."""
    cores = available_cores()
    counts = [recipe["before"]["settings"]["threads"], recipe["settings"]["threads"]]
    if max(counts) > cores:
        remarks.append(f"measured with {cores} threads, of then {max(counts)}: so many cores")
    threads = [min(count, cores) for count in counts]
    settings = recipe["settings"]
    after = Candidate(
        settings["weights"],
        settings["kv"],
        threads[1],
        steps=(_AsMade(),),
        chunk=settings.get("chunk"),
        sequences=settings.get("max_sequences"),
        prefix_cache=settings.get("prefix_cache", False),
        operators=Operators(settings.get("fuse", True), _isa(settings.get("isa"), remarks)),
    )
    return original(threads[0]), after


def _isa(named: str | None, remarks: list[str]) -> str | None:
    used = None if named is None else isa_of_recipe(named)
    if used != named:
        remarks.append(f"measured with {choose_isa(None)} kernels, then {named}")
    return used


@dataclass(frozen=True, slots=True)
class _AsMade:
    """Stands for all that the artefact's recipe did, where a laboratory asks for a model."""

    name: ClassVar[str] = "as made"
    needs: ClassVar[frozenset[Need]] = frozenset()
    exact: ClassVar[bool] = False

    @property
    def label(self) -> str:
        return "the artefact"

    def why_unfit(self, model: Model) -> None:
        return

    def predict(self, model: Model) -> Prediction:
        return Prediction()

    def apply(self, model: Model, workshop: Workshop) -> Model:
        raise TypeError("the artefact is loaded, not made")


def _intervals(accuracy: Accuracy | None) -> dict[str, Interval]:
    if accuracy is None:
        return {}
    return {
        "kl_divergence": accuracy.kl,
        "perplexity_ratio": accuracy.perplexity_ratio,
        "top1_agreement": accuracy.top1_agreement,
    }


def _checks(recipe: Mapping[str, Any], now: Mapping[str, Interval]) -> list[Check]:
    """The claims that the recipe makes; an artefact that is the original makes none."""
    claims = {**(recipe.get("accuracy") or {}), "speedup": recipe.get("speedup")}
    found = [(name, claims.get(name)) for name in now]
    return [
        Check(name, Interval(**claim), now[name])
        for name, claim in found
        if claim is not None and None not in claim.values()
    ]


def _figures(interval: Interval) -> str:
    return f"{interval.estimate:.4g} [{interval.low:.4g}, {interval.high:.4g}]"

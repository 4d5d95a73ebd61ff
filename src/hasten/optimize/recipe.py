"""The recipe: everything needed to repeat an optimisation, and what it found.

It is one JSON object, `recipe.json` of the artefact. The report is drawn from it alone.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from hasten import __version__
from hasten.errors import ModelFileError
from hasten.machine import Machine
from hasten.measure.accuracy import ACCURACY_FORMULAS
from hasten.measure.corpus import Windows
from hasten.measure.tasks.compare import TASK_FORMULAS
from hasten.models import Model
from hasten.optimize.claims import CLAIM_FORMULAS
from hasten.optimize.front import pareto_front
from hasten.optimize.gate import Budget, Measured
from hasten.optimize.laboratory import Material, TaskMaterial
from hasten.optimize.objective import Objective
from hasten.optimize.speed import SPEED_FORMULAS
from hasten.optimize.tail import TAIL_FORMULAS
from hasten.optimize.trial import Trial

__all__ = ["SCHEMA", "Evidence", "build_recipe", "check_recipe"]

SCHEMA = "hasten.recipe/1"

_FORMULAS = {
    **SPEED_FORMULAS,
    **TAIL_FORMULAS,
    **ACCURACY_FORMULAS,
    **{f"items: {name}": formula for name, formula in TASK_FORMULAS.items()},
    **CLAIM_FORMULAS,
    "gate": "the upper end of the 95 % interval of every loss is inside the budget",
    "weights_bytes": "bytes of weights as the engine holds them",
    "peak_rss_bytes": "largest resident memory of a fresh process that runs the request once",
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a search measured, and on what.

    Attributes:
        model: The original.
        winner: The chosen trial, which may be the original.
        original: The original's trial.
        trials: All candidates, in the order they were proposed.
        remarks: What the search has to say beside the figures.
        budget: What could be lost.
        objective: What was timed, and the bounds that were asked for.
        material: Texts and request.
        machine: Where it was measured.
        memory: Bytes of "weights", "kv_cache" and "buffers" of the original and of the winner.
        seed: Of intervals, prompts and order.
        seconds: How long the search took.
        arguments: The command line after `hasten`.
        training: Losses of passes that trained, as `hasten.optimize.training` gives them.
    """

    model: Model
    winner: Trial
    original: Trial
    trials: Sequence[Trial]
    remarks: Sequence[str]
    budget: Budget
    objective: Objective
    material: Material
    machine: Machine
    memory: Mapping[str, Mapping[str, int]]
    seed: int
    seconds: float
    arguments: Sequence[str]
    training: Sequence[Mapping[str, Any]] = ()


def build_recipe(
    evidence: Evidence, passes: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Makes the recipe.

    Args:
        evidence: What was measured.
        passes: Parameters of each pass that was applied, in order.
        settings: `EngineOptions` fields with which the artefact is to run.
    """
    model, winner, original = evidence.model, evidence.winner, evidence.original
    return {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["hasten", *evidence.arguments],
        "versions": {
            "hasten": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "source": {
            "name": model.name,
            "path": str(model.path.absolute()),
            "digest": model.digest(),
        },
        "passes": [dict(one) for one in passes],
        "settings": dict(settings),
        "objective": evidence.objective.as_dict(),
        "before": _figures(original, evidence.memory["before"]),
        "after": _figures(winner, evidence.memory["after"]),
        "speedup": None if winner.speedup is None else winner.speedup.as_dict(),
        "accuracy": _accuracy(winner.proved),
        "tasks": _tasks(winner.proved),
        "budget": evidence.budget.as_dict(),
        "texts": {
            "calibration": _text(evidence.material.calibration),
            "evaluation": _text(evidence.material.evaluation),
            **_training_text(evidence.material),
        },
        "items": None if evidence.material.tasks is None else _items(evidence.material.tasks),
        "chosen": winner.candidate.label,
        "candidates": [_trial(trial) for trial in (original, *evidence.trials)],
        "front": _front([original, *evidence.trials]),
        "training": [dict(one) for one in evidence.training],
        "remarks": list(evidence.remarks),
        "machine": evidence.machine.as_dict(),
        "seed": evidence.seed,
        "search_seconds": evidence.seconds,
        "formulas": _FORMULAS,
    }


def check_recipe(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Gives the recipe back if this version can read it.

    Raises:
        ModelFileError: It is of another schema, or lacks a part.
    """
    schema = recipe.get("schema")
    if schema != SCHEMA:
        raise ModelFileError(f"recipe of schema {schema!r}", allowed=SCHEMA)
    needed = (
        "source",
        "settings",
        "before",
        "after",
        "budget",
        "candidates",
        "texts",
        "chosen",
        "front",
        "objective",
    )
    missing = [name for name in needed if name not in recipe]
    if missing:
        raise ModelFileError(f"the recipe has no {missing[0]!r}", do="make the artefact again")
    return recipe


def _figures(trial: Trial, memory: Mapping[str, int]) -> dict[str, Any]:
    timed = {} if trial.timings is None else trial.timings.as_dict()
    tails = [one.as_dict() for one in trial.tails]
    settings = trial.candidate.settings()
    return {"settings": settings, **timed, "tails": tails, "memory": dict(memory)}


def _text(windows: Windows) -> dict[str, Any]:
    return {
        "name": windows.name,
        "digest": windows.digest,
        "tokens": windows.scored,
        "windows": len(windows.ids),
        "context": windows.context,
    }


def _training_text(material: Material) -> dict[str, Any]:
    return {} if material.training_text is None else {"training": _text(material.training_text)}


def _items(tasks: TaskMaterial) -> dict[str, Any]:
    return {"search": tasks.search.as_dict(), "proof": tasks.proof.as_dict()}


def _front(trials: Sequence[Trial]) -> list[int]:
    """Places in `candidates` of the Pareto front, from the original on."""
    front = pareto_front(trials[1:])
    return [0, *(place for place, trial in enumerate(trials) if trial in front)]


def _accuracy(found: Measured | None) -> dict[str, Any] | None:
    return None if found is None or found.text is None else found.text.as_dict()


def _tasks(found: Measured | None) -> dict[str, Any] | None:
    return None if found is None or found.tasks is None else found.tasks.as_dict()


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "label": trial.candidate.label,
        "passes": trial.candidate.passes(),
        "settings": trial.candidate.settings(),
        "memory_bytes": trial.memory_bytes,
        "status": trial.status,
        "reason": trial.reason,
        "weights_bytes": trial.weights_bytes,
        "timings": None if trial.timings is None else trial.timings.as_dict(),
        "speedup": None if trial.speedup is None else trial.speedup.as_dict(),
        "tails": [one.as_dict() for one in trial.tails],
        "accuracy": _accuracy(trial.evidence),
        "tasks": _tasks(trial.evidence),
        "claim": None if trial.claim is None else trial.claim.as_dict(),
        "accuracy_text": "evaluation" if trial.proved is not None else "calibration",
    }

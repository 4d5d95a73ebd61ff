"""Makes an artefact again from its recipe: the same passes on the same source, nothing measured."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hasten import __version__
from hasten.errors import ModelFileError, UsageError
from hasten.measure.corpus import Windows
from hasten.models import Model
from hasten.models.artefact import DIGEST_KEY, RECIPE_FILE, write_artefact
from hasten.models.json_file import read_json_object
from hasten.optimize.candidates import Candidate
from hasten.optimize.passes import make_pass
from hasten.optimize.passes.interface import Pass
from hasten.optimize.passes.quantize import QuantizeWeights
from hasten.optimize.provenance import (
    Sameness,
    compare_weights,
    find_source,
    recut_training_text,
    recut_windows,
)
from hasten.optimize.recipe import check_recipe
from hasten.optimize.stages import Progress
from hasten.optimize.variants import Variants

__all__ = ["read_recipe", "recipe_passes", "remaking", "replay", "with_candidate"]

_NO_TEXT = Windows("none", "", (), 0)
"""For passes that look at no text."""


def read_recipe(path: Path) -> Mapping[str, Any]:
    """The recipe in a JSON file, or that of an artefact's directory.

    Raises:
        ModelFileError: There is none, or this version does not read it.
    """
    return check_recipe(read_json_object(path / RECIPE_FILE if path.is_dir() else path))


def replay(
    recipe: Mapping[str, Any],
    output: Path,
    *,
    progress: Progress,
    source: str | None = None,
    text: Path | None = None,
) -> Sameness:
    """Writes the artefact that a recipe describes, and holds its weights to those of then.

    Args:
        recipe: As `hasten.optimize.recipe` makes it.
        output: Directory of the artefact; an artefact that is there is replaced.
        progress: Told what is being done, and the share of a pass that is done.
        source: Where the source is, if elsewhere than the recipe says.
        text: The file that the recipe's texts were cut from, unless it was the default text.

    Returns:
        Whether the weights are those of then, bit for bit. The recipe that is written has the
        digest of those that are there.

    Raises:
        HastenError: The source or the text are not what they were, a pass is not known or cannot
            be applied, or the artefact cannot be written.
    """
    steps, rounding = recipe_passes(recipe)
    original = find_source(recipe, source)
    with remaking(recipe, original, progress, text) as variants:
        for number, step in enumerate(steps):
            reason = step.why_unfit(variants.model(steps[:number]))
            if reason is not None:
                raise ModelFileError(f"the recipe's pass {step.label!r} does not fit: {reason}")
        model = variants.model(steps)
        progress("writing the artefact", 1.0)
        settings = recipe["settings"]
        bare = Candidate(settings["weights"], settings["kv"], settings["threads"])
        weights = (
            QuantizeWeights(bare).keep(model)
            if rounding is None
            else QuantizeWeights(replace(bare, **rounding)).apply(model)
        )
        write_artefact(output, model, weights, {**recipe, "replayed": _circumstances()})
    return compare_weights(recipe, output)


@contextmanager
def remaking(
    recipe: Mapping[str, Any], original: Model, progress: Progress, text: Path | None
) -> Iterator[Variants]:
    """The original after a recipe's passes, each made when it is first asked for.

    Args:
        recipe: As `hasten.optimize.recipe` makes it.
        original: What it was made of.
        progress: Told what a pass does, and the share of it that is done.
        text: The file that the recipe's texts were cut from, unless it was the default text.

    Raises:
        HastenError: The text is not what it was.
    """
    calibration, training_text = _NO_TEXT, None
    needs = {need for step in recipe_passes(recipe)[0] for need in step.needs}
    if "calibration" in needs:
        calibration = recut_windows(recipe, "calibration", original.tokenizer, text)
    if "training" in needs:
        training_text = recut_training_text(recipe, original, text)
    with tempfile.TemporaryDirectory(prefix="hasten-replay-") as scratch:
        yield Variants(
            original,
            calibration,
            Path(scratch),
            progress,
            seed=int(recipe.get("seed", 0)),
            training_text=training_text,
        )


def with_candidate(recipe: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """The recipe as if another of its candidates had been chosen.

    Args:
        recipe: As `hasten.optimize.recipe` makes it.
        number: Place of the candidate in the report's table; 0 is the original.

    Raises:
        UsageError: There is no such candidate, or it was never run.
    """
    listed = recipe["candidates"]
    if number >= len(listed) or listed[number]["timings"] is None:
        able = [str(place) for place, one in enumerate(listed) if one["timings"] is not None]
        raise UsageError(f"candidate {number}", allowed=", ".join(able))
    one = listed[number]
    settings = {name: value for name, value in one["settings"].items() if name != "overrides"}
    rounded = {
        "pass": QuantizeWeights.name,
        "method": "round to nearest",
        "weights": settings["weights"],
        "overrides": one["settings"]["overrides"],
    }
    exact = one["status"] == "original"
    memory = {} if one["memory_bytes"] is None else {"all": one["memory_bytes"]}
    # The digest is that of the chosen candidate's weights.
    kept = {name: value for name, value in recipe.items() if name != DIGEST_KEY}
    return {
        **kept,
        "chosen": one["label"],
        "passes": [] if exact else [*one["passes"], rounded],
        "settings": {**settings, "weights": "f32" if exact else "carried"},
        "after": {"settings": one["settings"], **one["timings"], "memory": memory},
        "speedup": one["speedup"],
        "accuracy": one["accuracy"] if one["accuracy_text"] == "evaluation" else None,
        "tasks": one["tasks"],
    }


def recipe_passes(
    recipe: Mapping[str, Any],
) -> tuple[list[Pass[Model]], dict[str, Any] | None]:
    """The passes that change the model, and how the last one rounds its weights.

    Returns:
        The passes, and `weights` and `overrides` of `Candidate`; None if nothing is rounded.

    Raises:
        ModelFileError: A pass is not known, or there are others after the rounding.
    """
    listed: Sequence[Mapping[str, Any]] = recipe.get("passes", ())
    names = [one.get("pass") for one in listed]
    if QuantizeWeights.name in names[:-1]:
        raise ModelFileError(f"the recipe has passes after {QuantizeWeights.name!r}")
    if not names or names[-1] != QuantizeWeights.name:
        return [make_pass(one) for one in listed], None
    last = listed[-1]
    rounding = {"weights": last["weights"], "overrides": tuple(sorted(last["overrides"].items()))}
    return [make_pass(one) for one in listed[:-1]], rounding


def _circumstances() -> dict[str, str]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hasten": __version__,
        "python": platform.python_version(),
    }

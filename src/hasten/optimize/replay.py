"""Makes an artefact again from its recipe: the same passes on the same source, nothing measured."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hasten import __version__
from hasten.errors import ModelFileError
from hasten.measure.corpus import Windows
from hasten.models import Model
from hasten.models.artefact import write_artefact
from hasten.models.json_file import read_json_object
from hasten.optimize.candidates import Candidate
from hasten.optimize.passes import make_pass
from hasten.optimize.passes.interface import Pass, Workshop
from hasten.optimize.passes.quantize import QuantizeWeights, Weight
from hasten.optimize.provenance import find_source, recut_windows
from hasten.optimize.recipe import check_recipe

__all__ = ["read_recipe", "replay"]

Progress = Callable[[str, float], None]


def read_recipe(path: Path) -> Mapping[str, Any]:
    """The recipe in a JSON file, or that of an artefact's directory.

    Raises:
        ModelFileError: There is none, or this version does not read it.
    """
    return check_recipe(read_json_object(path / "recipe.json" if path.is_dir() else path))


def replay(
    recipe: Mapping[str, Any],
    output: Path,
    *,
    progress: Progress,
    source: str | None = None,
    text: Path | None = None,
) -> None:
    """Writes the artefact that a recipe describes; its weights are those of then, bit for bit.

    Args:
        recipe: As `hasten.optimize.recipe` makes it.
        output: Directory of the artefact; an artefact that is there is replaced.
        progress: Told what is being done, and the share that is done.
        source: Where the source is, if elsewhere than the recipe says.
        text: The file that the recipe's texts were cut from, unless it was the default text.

    Raises:
        HastenError: The source or the text are not what they were, a pass is not known or cannot
            be applied, or the artefact cannot be written.
    """
    steps, quantize = _passes(recipe)
    original = find_source(recipe, source)
    calibration = _calibration(recipe, steps, original, text)
    model = original
    with tempfile.TemporaryDirectory(prefix="hasten-replay-") as scratch:
        for number, step in enumerate(steps):
            model = _apply(step, model, original, calibration, Path(scratch), number, recipe)
            progress(step.label, (number + 1) / (len(steps) + 1))
        progress("writing the artefact", len(steps) / (len(steps) + 1))
        write_artefact(output, model, quantize(model), {**recipe, "replayed": _circumstances()})


def _passes(
    recipe: Mapping[str, Any],
) -> tuple[list[Pass[Model]], Callable[[Model], Mapping[str, Weight]]]:
    """The passes that change the model, and the last one, which gives its weights their formats."""
    listed: Sequence[Mapping[str, Any]] = recipe.get("passes", ())
    names = [one.get("pass") for one in listed]
    if QuantizeWeights.name in names[:-1]:
        raise ModelFileError(f"the recipe has passes after {QuantizeWeights.name!r}")
    settings = recipe["settings"]
    candidate = Candidate(settings["weights"], settings["kv"], settings["threads"])
    if not names or names[-1] != QuantizeWeights.name:
        return [make_pass(one) for one in listed], QuantizeWeights(candidate).keep
    last = listed[-1]
    candidate = Candidate(
        last["weights"], candidate.kv, candidate.threads, tuple(sorted(last["overrides"].items()))
    )
    return [make_pass(one) for one in listed[:-1]], QuantizeWeights(candidate).apply


def _calibration(
    recipe: Mapping[str, Any], steps: Sequence[Pass[Model]], original: Model, text: Path | None
) -> Windows | None:
    """The calibration windows, if a pass looks at them."""
    if not any("calibration" in step.needs for step in steps):
        return None
    return recut_windows(recipe, "calibration", original.tokenizer, text)


def _apply(
    step: Pass[Model],
    model: Model,
    original: Model,
    calibration: Windows | None,
    scratch: Path,
    number: int,
    recipe: Mapping[str, Any],
) -> Model:
    reason = step.why_unfit(model)
    if reason is not None:
        raise ModelFileError(f"the recipe's pass {step.label!r} cannot change the model: {reason}")
    directory = scratch / str(number)
    directory.mkdir()
    none = Windows("none", "", (), 0)
    workshop = Workshop(
        original, calibration or none, directory, lambda *_: None, int(recipe.get("seed", 0))
    )
    return step.apply(model, workshop)


def _circumstances() -> dict[str, str]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hasten": __version__,
        "python": platform.python_version(),
    }

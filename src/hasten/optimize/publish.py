"""Writes the artefact of a search: staged beside its place, checked, then put there at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import HastenError, UsageError
from hasten.models import Model
from hasten.models.artefact import DIGEST_KEY, RECIPE_FILE, weights_digest, write_artefact
from hasten.optimize.candidates import Candidate
from hasten.optimize.passes.quantize import QuantizeWeights
from hasten.optimize.recipe import Evidence, build_recipe
from hasten.optimize.report import render_report
from hasten.optimize.speed import RequestShape

__all__ = [
    "REPORT_FILE",
    "artefact_settings",
    "check_destination",
    "check_same",
    "fresh_process_peak",
    "publish",
    "staged",
]

REPORT_FILE = "report.html"
_CHILD_SECONDS = 120


def check_destination(directory: Path) -> None:
    """Finds out before the search, not after it, that its result could not be put there.

    Raises:
        UsageError: Something else than an artefact is there, or nothing can be written there.
    """
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise UsageError(f"{directory} is no directory", do="choose another directory with -o")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / RECIPE_FILE).is_file():
        raise UsageError(
            f"{directory} holds something else than an artefact, so it is not overwritten",
            do="choose another directory with -o",
        )
    parent = directory.absolute().parent
    while not parent.exists():
        parent = parent.parent
    with _saying_where(directory):
        Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=parent)).rmdir()


@contextmanager
def _saying_where(directory: Path) -> Iterator[None]:
    """Turns what the system says about a file into a line for the user."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{directory} cannot be written: {error.strerror or error}",
            do="choose another directory with -o",
        ) from error


def artefact_settings(candidate: Candidate) -> dict[str, Any]:
    """How the artefact is to run: its matrices hold the candidate's formats already."""
    weights = "f32" if candidate.is_exact else "carried"
    settings = {name: one for name, one in candidate.settings().items() if name != "overrides"}
    return {**settings, "weights": weights}


@contextmanager
def staged(model: Model, candidate: Candidate, directory: Path) -> Iterator[Path]:
    """Writes the weights into a directory beside the destination; it vanishes in the end.

    Args:
        model: The original.
        candidate: How its matrices are to be held. The original's float32 is kept as the files
            hold it, which is smaller and loses nothing.
        directory: Where the artefact will be.

    Yields:
        The staged artefact, loadable, with a recipe of its settings alone.
    """
    quantize = QuantizeWeights(candidate)
    parent = directory.absolute().parent
    with _saying_where(directory):
        parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=parent))
    try:
        place = stage / "artefact"
        tensors = quantize.keep(model) if candidate.is_exact else quantize.apply(model)
        write_artefact(place, model, tensors, {"settings": artefact_settings(candidate)})
        yield place
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_same(expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
    """Holds the artefact to what was measured: its logits must be equal bit for bit.

    Raises:
        HastenError: They are not, so that the figures would be those of another model.
    """
    if not np.array_equal(expected, found):
        worst = float(np.abs(expected - found).max())
        raise HastenError(
            f"the artefact's logits differ by up to {worst:.3g} from those that were measured",
            do="nothing was written; please report this",
        )


def publish(place: Path, directory: Path, evidence: Evidence, named: str) -> dict[str, Any]:
    """Adds recipe and report to a staged artefact and puts it at its destination.

    Args:
        place: The staged artefact.
        directory: The destination; an artefact that is there is replaced.
        evidence: What was measured.
        named: The destination as the user wrote it, for the commands in the report.

    Returns:
        The recipe.
    """
    candidate = evidence.winner.candidate
    rounded = [] if candidate.is_exact else [QuantizeWeights(candidate).parameters()]
    passes = [*candidate.passes(), *rounded]
    recipe = build_recipe(evidence, passes, artefact_settings(candidate))
    recipe[DIGEST_KEY] = weights_digest(place)
    text = json.dumps(recipe, indent=2, ensure_ascii=False, allow_nan=False)
    page = render_report(recipe, named)
    with _saying_where(directory):
        (place / RECIPE_FILE).write_text(text + "\n", encoding="utf-8")
        (place / REPORT_FILE).write_text(page, encoding="utf-8")
        _exchange(place, directory)
    return recipe


def _exchange(place: Path, directory: Path) -> None:
    """Gives the staged artefact the name of an older one, which stays if that fails."""
    old = place.parent / "old"
    if directory.exists():
        directory.rename(old)
    try:
        place.rename(directory)
    except BaseException:
        if old.exists():
            old.rename(directory)
        raise


def fresh_process_peak(model: Path, settings: Mapping[str, Any], shape: RequestShape) -> int | None:
    """Peak resident bytes of a process of its own that loads the model and answers requests.

    It runs `hasten bench` for a request to warm up and one to measure. None if that fails: the
    figure is for information, and the search's result does not depend on it.
    """
    arguments = [
        *("bench", str(model), "--requests", "1", "--warmup", "1", "--json", "-"),
        *("--input-len", str(shape.input_tokens), "--output-len", str(shape.output_tokens)),
        *("--max-context", str(shape.input_tokens + shape.output_tokens + 1)),
        *("--weights", settings["weights"], "--kv", settings["kv"]),
        *("--threads", str(settings["threads"])),
    ]
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, arguments of our own, no shell
            [sys.executable, "-m", "hasten", *arguments],
            capture_output=True,
            check=True,
            timeout=_CHILD_SECONDS,
        )
        return int(json.loads(done.stdout)["memory"]["peak_rss_bytes"])
    except (OSError, ValueError, KeyError, subprocess.SubprocessError):
        return None

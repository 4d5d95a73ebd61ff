"""`hasten eval --task`: what a model, as it would run, loses on labelled items."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.console import print_table, progress, remark, write_text
from hasten.types import EngineOptions

if TYPE_CHECKING:
    from hasten.measure.tasks.compare import TaskAccuracy
    from hasten.measure.tasks.items import TaskSet
    from hasten.measure.tasks.run import TaskResults
    from hasten.measure.tasks.scoring import ScoreFunction
    from hasten.models import Model

__all__ = ["ItemChoice", "answer_both", "show_items", "task_document", "write_flips"]

_SHOWN_FLIPS = 5
_WIDTH = 60


@dataclass(frozen=True, slots=True)
class ItemChoice:
    """What the user said about labelled items.

    Attributes:
        path: The file.
        function: Name of a function that scores, or None.
        max_tokens: Longest answer where the item does not say.
        flips: Where to write the items whose score changed, or None.
    """

    path: Path
    function: str | None
    max_tokens: int
    flips: Path | None


def answer_both(
    candidate: Model,
    reference: Model,
    options: tuple[EngineOptions, EngineOptions],
    choice: ItemChoice,
    seed: int,
) -> tuple[TaskAccuracy, TaskSet, dict[str, str]]:
    """Answers the items with both models, one after the other.

    Args:
        candidate: The model.
        reference: What it is compared with.
        options: How to run each.
        choice: The items.
        seed: Of the bootstrap, where there is one.

    Returns:
        The comparison, the items, and the format that each tensor of the candidate ran in.
    """
    from hasten.measure.tasks.compare import compare_results, what_few_show
    from hasten.measure.tasks.reading import read_tasks
    from hasten.measure.tasks.scoring import load_function

    function = None if choice.function is None else load_function(choice.function)
    tasks = read_tasks(choice.path, custom=function is not None)
    if tasks.duplicates:
        remark(f"{tasks.duplicates} lines of {choice.path} say the same as others: left out")
    few = what_few_show(len(tasks.tasks))
    if few is not None:
        remark(few)
    after, formats = _answer(candidate, options[0], tasks, choice, function, "model")
    before, _ = _answer(reference, options[1], tasks, choice, function, "reference")
    for name, results in (("model", after), ("reference", before)):
        cut = sum(item.cut for item in results.items)
        if cut:
            remark(f"{cut} answers of the {name} ended at their greatest length: see --max-tokens")
    return compare_results(before, after, seed=seed), tasks, formats


def _answer(
    model: Model,
    options: EngineOptions,
    tasks: TaskSet,
    choice: ItemChoice,
    function: ScoreFunction | None,
    name: str,
) -> tuple[TaskResults, dict[str, str]]:
    from hasten.generation import Engine
    from hasten.measure.tasks.run import run_tasks

    with (
        Engine(model, options) as engine,
        progress(f"answers of the {name}", len(tasks.tasks)) as set_done,
    ):
        results = run_tasks(
            engine,
            tasks,
            max_tokens=choice.max_tokens,
            function=function,
            on_progress=set_done,
        )
        return results, dict(engine.formats)


def show_items(title: str, found: TaskAccuracy) -> None:
    """Prints the comparison as a table, and the first flips."""
    loss = found.loss
    rows = [
        ["score of the reference, %", f"{100 * found.reference_score:.2f}", "", ""],
        ["score, %", f"{100 * found.score:.2f}", "", ""],
        ["lost, points", *(f"{100 * end:.2f}" for end in (loss.estimate, loss.low, loss.high))],
    ]
    print_table(["", "figure", "95 % from", "to"], rows, title=title)
    line = f"\n{found.items} items: {found.lost} lost, {found.gained} gained"
    if found.mcnemar_p is not None:
        line += f"; McNemar p = {found.mcnemar_p:.3g}"
    click.echo(line)
    if found.generated:
        click.echo(
            f"first token changed in {found.changed_first} of {found.generated} generated answers,"
            f" {found.near_ties} of them near ties"
        )
    for flip in found.flips[:_SHOWN_FLIPS]:
        click.echo(
            f"line {flip.line}, wanted {_short(flip.expected)}: {_short(flip.before.text)}"
            f" → {_short(flip.after.text)}"
        )
    if len(found.flips) > _SHOWN_FLIPS:
        click.echo(f"and {len(found.flips) - _SHOWN_FLIPS} more: --flips FILE writes all")


def write_flips(found: TaskAccuracy, path: Path) -> None:
    """Writes the items whose score changed as JSON Lines."""
    lines = [json.dumps(dict(flip.as_dict()), ensure_ascii=False) + "\n" for flip in found.flips]
    write_text("".join(lines), path)


def task_document(tasks: TaskSet, found: TaskAccuracy, choice: ItemChoice) -> Mapping[str, Any]:
    """The part of the report that tells of items."""
    from hasten.measure.tasks.compare import TASK_FORMULAS

    return {
        "tasks": {**tasks.as_dict(), "function": choice.function, "max_tokens": choice.max_tokens},
        "task_accuracy": found.as_dict(),
        "formulas": TASK_FORMULAS,
    }


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"

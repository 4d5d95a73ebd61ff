"""The result files of a batch: answers in one, errors in the other, as OpenAI's clients expect."""

from __future__ import annotations

import secrets
from pathlib import Path

from hasten.serve.batch.answer import RUN_DIGITS, Tally, make_id, render_error
from hasten.serve.batch.lineset import LineSet
from hasten.serve.batch.request import custom_id
from hasten.serve.batch.source import Source
from hasten.serve.files import Incoming

__all__ = ["add_expired", "split_answers"]

_EXPIRED = "this request could not be executed before the completion window expired"


def split_answers(journal: Path, answers: Incoming, errors: Incoming) -> tuple[LineSet, Tally]:
    """Copies each line of a journal to where it belongs.

    Args:
        journal: Written to its end; it may be missing.
        answers: Receives the lines that were answered.
        errors: Receives the others.

    Returns:
        The numbers of the lines that have an answer, and what the answers amount to.
    """
    found = LineSet()
    tally = Tally()
    if journal.exists():
        with journal.open("rb") as file:
            for line in file:
                seen = tally.count(line)
                found.add(seen.number)
                (errors if seen.failed else answers).write(line)
    return found, tally


def add_expired(source: Source, answered: LineSet, errors: Incoming) -> int:
    """Writes an error for each line of the input that has no answer; returns for how many."""
    run = secrets.token_hex(RUN_DIGITS // 2)
    count = 0
    for line in source.lines():
        if line.number not in answered:
            name = None if line.text is None else custom_id(line.text)
            errors.write(render_error(make_id(run, line.number), name, "batch_expired", _EXPIRED))
            count += 1
    return count

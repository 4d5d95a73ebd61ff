"""Whether an answer is right: by equality, by a regular expression, or by the user's function."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hasten.errors import UsageError
from hasten.measure.tasks import matcher

__all__ = ["ScoreFunction", "load_function", "match_patterns", "normalise", "own_score"]

ScoreFunction = Callable[[str, str, Any], bool | float]
"""Called with (prompt, output, expected); True, False, or a score from 0 to 1."""

MATCH_SECONDS = 10.0
"""For all patterns of a file together; they take microseconds unless one runs wild."""

_MARKS = " \t\r\n.,;:!?\"'`*()[]"


def normalise(text: str) -> str:
    """The form in which answers are compared.

    Unicode NFKC, case folded, runs of white space made one space, and blanks, quotes, brackets and
    marks such as . , ! taken from both ends, unless nothing else is there.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.strip(_MARKS) or folded


def match_patterns(pairs: Sequence[tuple[str, str]], lines: Sequence[int]) -> list[bool]:
    """Whether each pattern matches somewhere in its text, decided in a process of its own.

    Args:
        pairs: (pattern, text).
        lines: Of the items, for the error.

    Raises:
        UsageError: A pattern runs wild: they are not done after 10 seconds.
    """
    if not pairs:
        return []
    asked = "".join(json.dumps(pair) + "\n" for pair in pairs)
    try:
        done = subprocess.run(  # noqa: S603 - this Python and a file of ours
            [sys.executable, "-I", str(Path(matcher.__file__))],
            input=asked.encode(),
            stdout=subprocess.PIPE,
            timeout=MATCH_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        at = (error.stdout or b"").count(b"\n")
        raise UsageError(
            f"the pattern of line {lines[at]}, {pairs[at][0]!r:.60}, was not done with an answer"
            f" after {MATCH_SECONDS:.0f} s",
            do="write it without repetitions inside repetitions",
        ) from error
    return [answer == b"1" for answer in done.stdout.split()]


def load_function(name: str) -> ScoreFunction:
    """The user's function that `module:function` or `file.py:function` names.

    Raises:
        UsageError: There is no such module or function, or importing it fails.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute.isidentifier():
        raise UsageError(f"{name!r} names no function", allowed="module:function, file.py:function")
    try:
        module = (
            _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        )
    except Exception as error:  # the user's own code may raise anything
        raise UsageError(f"cannot import {place}: {type(error).__name__}: {error}") from error
    function: ScoreFunction | None = getattr(module, attribute, None)
    if not callable(function):
        raise UsageError(f"{place} has no function {attribute!r}")
    return function


def _load_file(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def own_score(
    function: ScoreFunction, prompt: str, output: str, expected: object, line: int
) -> float:
    """What the user's function says of one answer.

    Raises:
        UsageError: It raised something, or gave no number from 0 to 1.
    """
    try:
        found = function(prompt, output, expected)
    except Exception as error:  # the user's own code may raise anything
        raise UsageError(
            f"the scoring function failed on line {line}: {type(error).__name__}: {error}"
        ) from error
    try:
        score = float(found)
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 1:
        raise UsageError(
            f"the scoring function gave {found!r:.60} for line {line}",
            allowed="True, False, or a number from 0 to 1",
        )
    return score

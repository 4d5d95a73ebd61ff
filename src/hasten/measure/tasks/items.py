"""Labelled items: a prompt, and what is a right answer to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hasten.measure.workload import Chat

__all__ = ["Choice", "Custom", "Exact", "Expectation", "Pattern", "Task", "TaskSet"]


@dataclass(frozen=True, slots=True)
class Exact:
    """The answer has to be this text, after `hasten.measure.tasks.scoring.normalise`."""

    answer: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The likeliest of several continuations has to be the right one.

    Attributes:
        choices: The continuations.
        right: Index of the right one.
    """

    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression has to match somewhere in the answer."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Custom:
    """The user's own function decides; it is given this value, any JSON."""

    expected: Any


Expectation = Exact | Choice | Pattern | Custom


@dataclass(frozen=True, slots=True)
class Task:
    """One item.

    Attributes:
        line: Where its file has it, from 1.
        prompt: A conversation for the chat template, or a text to go on with.
        expected: What is right.
        max_tokens: Longest answer; None leaves it to whoever runs the items.
        stop: The answer ends before the first of these.
    """

    line: int
    prompt: Chat | str
    expected: Expectation
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the prompt, the same wherever the item stands."""
        prompt: object = self.prompt
        if isinstance(self.prompt, Chat):
            prompt = [dict(message) for message in self.prompt.messages]
        return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()

    @property
    def asked(self) -> str:
        """The prompt in a text of its own, for lists of answers and users' functions."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(message["content"] for message in self.prompt.messages)

    @property
    def wanted(self) -> Any:  # noqa: ANN401 - any JSON
        """What is right, for lists of answers and users' functions."""
        match self.expected:
            case Exact(answer):
                return answer
            case Choice(choices, right):
                return choices[right]
            case Pattern(pattern):
                return pattern
            case Custom(expected):
                return expected


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Items of one file.

    Attributes:
        name: Of the file.
        digest: SHA-256 in hex of its content.
        tasks: In the order of the file, each once.
        duplicates: Lines that said the same as an earlier one, and are left out.
    """

    name: str
    digest: str
    tasks: tuple[Task, ...]
    duplicates: int = 0

    def halves(self) -> tuple[TaskSet, TaskSet]:
        """Splits into (for the search, for the proof) by a hash of each item's prompt.

        So an item is on the same side whatever else the file holds, and however it is ordered.
        """
        sides: tuple[list[Task], list[Task]] = ([], [])
        for task in self.tasks:
            sides[int(task.digest[-1], 16) % 2].append(task)
        first, second = (
            replace(self, name=f"{self.name}, {half} half", tasks=tuple(side), duplicates=0)
            for half, side in zip(("first", "second"), sides, strict=True)
        )
        return first, second

    def as_dict(self) -> Mapping[str, object]:
        """JSON-ready values."""
        return {
            "name": self.name,
            "digest": self.digest,
            "items": len(self.tasks),
            "duplicates": self.duplicates,
            "kinds": _counts([type(task.expected).__name__.lower() for task in self.tasks]),
        }


def _counts(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in dict.fromkeys(names)}

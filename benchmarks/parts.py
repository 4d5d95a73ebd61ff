"""What benchmarks in several parts share: texts to ask about, progress, results."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hasten.machine import detect_machine
from hasten.measure.corpus import default_corpus

__all__ = ["Part", "Texts", "report", "run_parts"]

Part = Callable[[argparse.Namespace], dict[str, Any]]
WORDS = 90
"""About 128 tokens of SmolLM2 with its template."""


class Texts:
    """Prompts that do not begin alike, so that no prefix is shared."""

    def __init__(self, seed: int) -> None:
        self._words = default_corpus().text.split()
        self._random = random.Random(seed)

    def draw(self, words: int = WORDS) -> str:
        """So many words from a random place."""
        begin = self._random.randrange(len(self._words) - words)
        return " ".join(self._words[begin : begin + words])


def report(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


def run_parts(parts: Mapping[str, Part], options: argparse.Namespace) -> dict[str, Any]:
    """Results of the parts of `options.parts`; each goes into `options.json` when it is there."""
    path: Path | None = options.json
    document: dict[str, Any] = {}
    results = {}
    if path is not None and path.exists():
        document = json.loads(path.read_text(encoding="utf-8"))
    for name in options.parts:
        result = results[name] = parts[name](options)
        document["machine"] = detect_machine().as_dict()
        document.setdefault("results", {})[name] = result
        if path is not None:
            path.write_text(json.dumps(document, indent=2, default=str) + "\n", encoding="utf-8")
        print(json.dumps({name: result}, indent=2, default=str), flush=True)
    return results

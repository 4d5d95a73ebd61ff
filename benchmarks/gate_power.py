"""How often the gate of `hasten optimize` lets pass what is broken, and refuses what is harmless.

    .venv/bin/python benchmarks/gate_power.py --json build/gate_power.json

Each try changes the model by a change of `model_changes.py`, runs it as it would be served (the
file's codes, activations in int8, KV cache in bfloat16) and holds it to the default budget on
held-out text, against the model in float32. Tries take turns over pieces of the text, since on one
piece all harmless changes would stand or fall together. What each try measured is kept beside the
report, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from model_changes import BROKEN, HARMLESS, Changed

from hasten.generation import Engine
from hasten.measure.accuracy import PairedSamples, Reference, summarize
from hasten.measure.corpus import Corpus, Windows, cut_windows, default_corpus
from hasten.models import Model, load_model
from hasten.optimize.candidates import Candidate, original
from hasten.optimize.gate import Budget

__all__ = ["Try", "judge", "plan_tries"]

CONTEXT = 512
HARMLESS_TRIES = {
    "unfused": 4,
    "threads": 4,
    "packing": 8,
    "permuted channels": 28,
    "permuted heads": 28,
    "rescaled norms": 28,
}


@dataclass(frozen=True, slots=True)
class Try:
    """One change; `number` seeds it within its kind and chooses the piece of text."""

    kind: str
    number: int

    @property
    def broken(self) -> bool:
        """Whether the gate has to refuse it."""
        return self.kind in BROKEN

    @property
    def file(self) -> str:
        """Where its samples are kept."""
        return f"{self.kind.replace(' ', '_')}-{self.number}.npz"


def plan_tries(broken: int, harmless: float) -> list[Try]:
    """So many tries of each kind that breaks, and this share of the usual harmless ones."""
    tries = [Try(kind, number) for kind in BROKEN for number in range(broken)]
    for kind, count in HARMLESS_TRIES.items():
        tries += [Try(kind, number) for number in range(round(count * harmless))]
    return tries


def pieces(model: Model, count: int, tokens: int) -> list[Windows]:
    """Windows from places far apart in the half of the text that no search sees."""
    held_out = default_corpus().halves()[1]
    length = len(held_out.text) // count
    texts = [held_out.text[at * length : (at + 1) * length] for at in range(count)]
    return [
        cut_windows(
            Corpus(f"{held_out.name}, piece {number}", text),
            model.tokenizer,
            tokens=tokens,
            context=CONTEXT,
        )
        for number, text in enumerate(texts)
    ]


class Bench:
    """Measures changed models on one piece of text; the original stays open meanwhile.

    Args:
        model: The original.
        windows: The piece.
        threads: Worker threads.
    """

    def __init__(self, model: Model, windows: Windows, threads: int) -> None:
        self._model = model
        self._threads = threads
        self._engine = Engine(model, original(threads).options(CONTEXT))
        vocabulary = model.config.vocab_size
        room = 4 * vocabulary * CONTEXT * (len(windows.ids) + 1)
        self._reference = Reference(self._engine, windows, vocab_size=vocabulary, keep_bytes=room)

    def measure(self, changed: Changed) -> PairedSamples:
        """The changed model against the original in float32."""
        options = Candidate("carried", "bf16", self._threads).options(CONTEXT)
        with Engine(changed.model, replace(options, **changed.options)) as engine:
            return self._reference.compare(engine)

    def close(self) -> None:
        """Frees the original."""
        self._engine.close()


def change(model: Model, one: Try, seed: int) -> Changed:
    """The change of a try."""
    kinds = {**BROKEN, **HARMLESS}
    rng = np.random.default_rng([seed, list(kinds).index(one.kind), one.number])
    return kinds[one.kind](model, rng)


def judge(samples: PairedSamples, seed: int) -> dict[str, Any]:
    """What the gate says of a try, with its figures."""
    accuracy = summarize(samples, seed=seed)
    refused = Budget().why_refused(accuracy)
    return {"passed": refused is None, "refused": refused, "accuracy": accuracy.as_dict()}


def run(
    model: Model, tries: list[Try], options: argparse.Namespace
) -> Iterator[tuple[Try, str, PairedSamples, float]]:
    """Measures the tries that have no samples yet, piece by piece, and yields all."""
    for number, windows in enumerate(pieces(model, options.texts, options.tokens)):
        bench = None
        for one in tries:
            if one.number % options.texts != number:
                continue
            path = options.samples / one.file
            if not path.exists():
                bench = bench or Bench(model, windows, options.threads)
                began = time.perf_counter()
                changed = change(model, one, options.seed)
                samples = bench.measure(changed)
                np.savez(
                    path,
                    about=changed.about,
                    seconds=time.perf_counter() - began,
                    **{name: value.astype(np.float32) for name, value in asdict(samples).items()},
                )
            with np.load(path) as kept:
                arrays = {name: kept[name].astype(np.float64) for name in _FIELDS}
                about, seconds = str(kept["about"]), float(kept["seconds"])
            yield one, about, PairedSamples(**arrays), seconds
        if bench is not None:
            bench.close()


_FIELDS = tuple(PairedSamples.__dataclass_fields__)


def summary(found: list[dict[str, Any]]) -> Mapping[str, Any]:
    """Passes by kind, and the tries in which the gate was wrong."""
    kinds: dict[str, dict[str, int]] = {}
    for one in found:
        counts = kinds.setdefault(one["kind"], {"tries": 0, "passed": 0})
        counts["tries"] += 1
        counts["passed"] += one["passed"]
    wrong = [one for one in found if one["passed"] == one["broken"]]
    return {"kinds": kinds, "wrong": wrong}


def main() -> None:
    """Runs the tries and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--broken", type=int, default=25, help="tries of each kind that breaks")
    parser.add_argument("--harmless", type=float, default=1.0, help="share of 100 harmless tries")
    parser.add_argument("--only", nargs="*", choices=[*BROKEN, *HARMLESS], metavar="KIND")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--texts", type=int, default=4, help="pieces of text to take turns over")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=Path, default=Path("build/gate_power"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.samples.mkdir(parents=True, exist_ok=True)
    model = load_model(options.model)
    tries = [
        one
        for one in plan_tries(options.broken, options.harmless)
        if not options.only or one.kind in options.only
    ]
    found = []
    for one, about, samples, seconds in run(model, tries, options):
        verdict = judge(samples, options.seed)
        found.append({**asdict(one), "broken": one.broken, "about": about, **verdict})
        print(
            f"{one.kind} {one.number} ({about}): {verdict['refused'] or 'passed'}"
            f" [{seconds:.1f} s]",
            file=sys.stderr,
            flush=True,
        )
    report = {
        "schema": "hasten.gate_power/1",
        "model": model.name,
        "tokens": options.tokens,
        "texts": options.texts,
        "budget": Budget().as_dict(),
        **summary(found),
        "tries": found,
    }
    text = json.dumps(report, indent=2)
    print(json.dumps(report["kinds"], indent=2))
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

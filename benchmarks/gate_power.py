"""How often the gate of `hasten optimize` lets pass what is broken, and refuses what is harmless.

    .venv/bin/python benchmarks/gate_power.py --json build/gate_power.json

Each try changes the model by a change of `model_changes.py` that says it changes nothing, and the
gate has to find out whether that is true:

budget   run as it would be served (the file's codes, activations in int8, KV cache in bfloat16), it
         is not beyond the default budget against the model in float32, on held-out text
excess   it loses no more than the unchanged model does in the same formats, position by position
float32  run in float32, it computes what the model in float32 does

Tries take turns over pieces of the text, since on one piece all harmless changes would stand or
fall together. What was measured is kept beside the report, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from model_changes import BROKEN, HARMLESS, UNCHANGED, Changed

from hasten.generation import Engine
from hasten.measure.accuracy import PairedSamples, Reference, summarize
from hasten.measure.corpus import Corpus, Windows, cut_windows, default_corpus
from hasten.models import Model, load_model
from hasten.optimize.candidates import Candidate, original
from hasten.optimize.claims import hold_to_claim
from hasten.optimize.gate import Budget
from hasten.types import EngineOptions

__all__ = ["Bench", "Try", "judge", "pieces", "plan_tries"]

CONTEXT = 512
EXACT_TOKENS = 128
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

    def file(self, part: str) -> str:
        """Where its samples are kept."""
        return f"{self.kind.replace(' ', '_')}-{self.number}.{part}.npz"

    def beside(self, pieces: int) -> Try:
        """The unchanged model in the same formats, on the same piece of text."""
        kind = "unchanged, down_proj in int8" if self.kind == "permuted channels" else "unchanged"
        return Try(kind, self.number % pieces)

    def change(self, model: Model, seed: int) -> Changed:
        """The changed model."""
        kinds = {**BROKEN, **HARMLESS, **UNCHANGED}
        rng = np.random.default_rng([seed, list(kinds).index(self.kind), self.number])
        return kinds[self.kind](model, rng)


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
    return [
        cut_windows(
            Corpus(
                f"{held_out.name}, piece {number}",
                held_out.text[number * length : (number + 1) * length],
            ),
            model.tokenizer,
            tokens=tokens,
            context=min(CONTEXT, model.config.max_position),
        )
        for number in range(count)
    ]


class Bench:
    """Measures changed models on one piece of text; a context manager, as engines are.

    Args:
        model: The original.
        windows: The piece.
        threads: Worker threads.
    """

    def __init__(self, model: Model, windows: Windows, threads: int) -> None:
        self._threads = threads
        self._context = windows.context
        self._engine = Engine(model, original(threads).options(self._context))
        ids = windows.ids[0][:EXACT_TOKENS]
        short = replace(windows, ids=(ids,), context=len(ids))
        self._reference, self._short = (
            Reference(self._engine, part, vocab_size=model.config.vocab_size, keep_bytes=1 << 34)
            for part in (windows, short)
        )

    def served(self, changed: Changed) -> PairedSamples:
        """As it would be served, against the original in float32."""
        options = Candidate("carried", "bf16", self._threads).options(self._context)
        return self._compare(self._reference, changed, options, _hopeless)

    def exact(self, changed: Changed) -> PairedSamples:
        """In float32, against the original in float32, on fewer tokens."""
        options = original(self._threads).options(self._context)
        plain = replace(changed, options={**changed.options, "overrides": {}})
        return self._compare(self._short, plain, options, None)

    def close(self) -> None:
        """Frees the original."""
        self._engine.close()

    @staticmethod
    def _compare(
        reference: Reference,
        changed: Changed,
        options: EngineOptions,
        enough: Callable[[PairedSamples], bool] | None,
    ) -> PairedSamples:
        with Engine(changed.model, replace(options, **changed.options)) as engine:
            return reference.compare(engine, enough=enough)


def _hopeless(samples: PairedSamples) -> bool:
    return Budget().why_hopeless(summarize(samples, seed=0)) is not None


def judge(
    served: PairedSamples, unchanged: PairedSamples, exact: Callable[[], PairedSamples]
) -> dict[str, Any]:
    """What the gate says of a try, with its figures; float32 is only asked if no excess is found.

    Args:
        served: The changed model as it would be served.
        unchanged: The unchanged model likewise.
        exact: Measures the changed model in float32.
    """
    accuracy = summarize(served, seed=0)
    hopeless = Budget().why_hopeless(accuracy)
    refused = {} if hopeless is None else {"budget": hopeless}
    claim = None
    if len(served.kl) == len(unchanged.kl):  # it was not given up before
        claim = hold_to_claim(served, unchanged, [("the change", exact)], seed=0)
        refused |= claim.refusals
    return {
        "passed": not refused,
        "refused": refused,
        "budget_alone": Budget().why_refused(accuracy) is None,
        "accuracy": accuracy.as_dict(),
        "claim": None if claim is None else claim.as_dict(),
    }


class Store:
    """Samples of tries in files; what is there is not measured again.

    Args:
        directory: Of the files.
        model: The original.
        windows: The pieces of text.
        options: The command line.
    """

    def __init__(
        self, model: Model, windows: Sequence[Windows], options: argparse.Namespace
    ) -> None:
        self._model = model
        self._windows = windows
        self._options = options
        self._open: tuple[int, Bench] | None = None

    def get(self, one: Try, part: str) -> PairedSamples:
        """Samples of a try as it would be "served", or "exact" in float32."""
        path: Path = self._options.samples / one.file(part)
        if not path.exists():
            bench = self._bench(one.number % len(self._windows))
            began = time.perf_counter()
            changed = one.change(self._model, self._options.seed)
            samples = bench.served(changed) if part == "served" else bench.exact(changed)
            np.savez(path, **{name: value.astype(np.float32) for name, value in _items(samples)})
            print(f"{path.name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        with np.load(path) as kept:
            return PairedSamples(
                *(kept[field.name].astype(np.float64) for field in fields(PairedSamples))
            )

    def _bench(self, piece: int) -> Bench:
        if self._open is not None and self._open[0] != piece:
            self._open[1].close()
            self._open = None
        if self._open is None:
            bench = Bench(self._model, self._windows[piece], self._options.threads)
            self._open = (piece, bench)
        return self._open[1]


def _items(samples: PairedSamples) -> Iterator[tuple[str, Any]]:
    return ((field.name, getattr(samples, field.name)) for field in fields(samples))


def run(model: Model, tries: Sequence[Try], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures and judges all tries, piece by piece."""
    windows = pieces(model, options.texts, options.tokens)
    store = Store(model, windows, options)
    found = []
    for one in sorted(tries, key=lambda one: one.number % options.texts):
        unchanged = store.get(one.beside(options.texts), "served")
        served = store.get(one, "served")
        verdict = judge(served, unchanged, functools.partial(store.get, one, "exact"))
        about = one.change(model, options.seed).about if one.kind in BROKEN else ""
        found.append({**asdict(one), "broken": one.kind in BROKEN, "about": about, **verdict})
    return found


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Passes by kind, by which part of the gate the others were refused, and what went wrong."""
    kinds: dict[str, dict[str, int]] = {}
    for one in found:
        counts = kinds.setdefault(one["kind"], dict.fromkeys(_COUNTS, 0))
        counts["tries"] += 1
        counts["passed"] += one["passed"]
        counts["budget_alone"] += one["budget_alone"]
        for name in one["refused"]:
            counts[f"refused_by_{name}"] += 1
    wrong = [one for one in found if one["passed"] == one["broken"]]
    return {"kinds": kinds, "wrong": wrong}


_COUNTS = (
    *("tries", "passed", "budget_alone"),
    *("refused_by_budget", "refused_by_excess", "refused_by_float32"),
)


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
    found = run(model, tries, options)
    report = {
        "schema": "hasten.gate_power/1",
        "model": model.name,
        "tokens": options.tokens,
        "texts": options.texts,
        "budget": Budget().as_dict(),
        "excess": Budget.of_excess().as_dict(),
        "float32": Budget.of_exactness().as_dict(),
        **summary(found),
        "tries": found,
    }
    print(json.dumps(report["kinds"], indent=2))
    for one in report["wrong"]:
        print(f"wrong: {one['kind']} {one['number']} {one['about']} {one['refused']}")
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

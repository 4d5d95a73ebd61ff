"""What removing layers, channels, heads and rank costs, and what it gains.

    .venv/bin/python benchmarks/pruning.py --json build/pruning.json
    .venv/bin/python benchmarks/pruning.py --pass '{"pass": "prune_channels", "share": 0.3}'

Each variant is one pass, applied to the model in float32 with the first half of the text. What it
loses is measured in float32 on the second half. What it gains is measured in one weight format for
all: decoding alone, in rounds whose order is drawn anew. The speed-up is the middle of the rounds'
own (Hodges and Lehmann), beside it the ratio of the bytes that a token reads (the matrices as
packed). A variant of the same shape as an earlier one is not raced again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hasten.generation import Engine
from hasten.machine import detect_machine
from hasten.measure.accuracy import Reference, summarize
from hasten.measure.corpus import Corpus, cut_windows, default_corpus
from hasten.measure.load import run_load
from hasten.measure.metrics import tpot
from hasten.measure.statistics import interleave, signed_rank_interval
from hasten.measure.synthetic import cut_prompts
from hasten.measure.targets.engine import EngineTarget
from hasten.measure.workload import Item, Workload
from hasten.models import Model, load_model
from hasten.optimize.passes import make_pass
from hasten.optimize.passes.interface import Pass, Workshop
from hasten.types import EngineOptions

__all__ = ["VARIANTS", "measure"]

VARIANTS: list[dict[str, Any]] = [
    {"pass": "prune_layers", "count": 5},
    {"pass": "prune_channels", "share": 0.1},
    {"pass": "prune_channels", "share": 0.1, "reconstruct": False},
    {"pass": "prune_channels", "share": 0.2},
    {"pass": "prune_channels", "share": 0.2, "reconstruct": False},
    {"pass": "prune_heads", "groups": 1},
    {"pass": "prune_heads", "groups": 1, "reconstruct": False},
    {"pass": "factorise", "share": 0.2},
]
CONTEXT = 256
TOLERANCE = 0.10
"""How far the speed-up may be from the ratio of the bytes."""


def measure(
    model: Model, passes: Sequence[Mapping[str, Any]], corpus: Corpus, options: argparse.Namespace
) -> dict[str, Any]:
    """The figures of each variant, JSON-ready; kept in `options.json` as they come."""
    first, second = corpus.halves()
    cut = partial(cut_windows, tokenizer=model.tokenizer, context=options.context)
    calibration = cut(first, tokens=options.calibration)
    windows = cut(second, tokens=options.tokens)
    exact = _options(options, "f32")
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        racers = {"original": stack.enter_context(Engine(model, _options(options, options.format)))}
        original = stack.enter_context(Engine(model, exact))
        reference = Reference(
            original, windows, vocab_size=model.config.vocab_size, keep_bytes=2 << 30
        )
        raced = set()
        for parameters in passes:
            step: Pass[Model] = make_pass(parameters)
            place = Workshop(model, calibration, Path("build"), lambda *_: None, options.seed)
            began = time.perf_counter()
            changed = step.apply(model, place)
            seconds = time.perf_counter() - began
            with Engine(changed, exact) as engine:
                accuracy = summarize(reference.compare(engine), seed=options.seed)
            predicted = step.predict(model)
            found[step.label] = {
                "pass": parameters,
                "apply_seconds": seconds,
                "predicted": {
                    "weight_bytes": predicted.weight_bytes,
                    "operations": predicted.operations,
                },
                "accuracy": accuracy.as_dict(),
            }
            kl, agreement = accuracy.kl.estimate, accuracy.top1_agreement.estimate
            _report(step.label, f"KL {kl:.3f}, agreement {agreement:.1%}, {seconds:.0f} s")
            _save(found, options.json)
            if changed.config not in raced:
                raced.add(changed.config)
                racers[step.label] = stack.enter_context(
                    Engine(changed, _options(options, options.format))
                )
        speeds = _race(racers, cut_prompts(model.tokenizer, first, [32] * 8, seed=1), options)
    for label, speed in speeds.items():
        found[label]["decode"] = speed
    _save(found, options.json)
    return found


def _options(options: argparse.Namespace, weights: str) -> EngineOptions:
    """All matrices in one format, the vocabulary's too."""
    return EngineOptions(
        weights=weights,
        kv="f32" if weights == "f32" else "bf16",
        threads=options.threads,
        decode_threads=options.threads,
        max_context=options.context,
        max_sequences=1,
        prefix_cache=False,
        keep_weights=False,
    )


def _race(
    engines: Mapping[str, Engine], prompts: list[tuple[int, ...]], options: argparse.Namespace
) -> dict[str, Any]:
    """Decoding of each variant beside that of the original."""
    times: dict[str, list[float]] = {label: [] for label in engines}
    for number in range(-1, options.rounds):
        prompt = prompts[number % len(prompts)]
        runs: dict[str, Callable[[], float]] = {
            label: partial(_decode, engine, prompt, options.output)
            for label, engine in engines.items()
        }
        for label, (seconds,) in interleave(runs, 1, options.seed + number + 1).items():
            if number >= 0:  # the first round warms up
                times[label].append(seconds)
    before = times.pop("original")
    size = engines["original"].memory["weights"]
    found = {}
    for label, after in times.items():
        gain = signed_rank_interval(np.log(np.divide(before, after)))
        low, speedup, high = (math.exp(x) for x in (gain.low, gain.estimate, gain.high))
        expected = size / engines[label].memory["weights"]
        found[label] = {
            "weights": options.format,
            "weight_bytes": engines[label].memory["weights"],
            "original_weight_bytes": size,
            "speedup": {"estimate": speedup, "low": low, "high": high, "confidence": 0.95},
            "ratio_of_bytes": expected,
            "off_by": speedup / expected - 1,
            "within_tolerance": abs(speedup / expected - 1) <= TOLERANCE,
        }
        _report(label, f"decodes {speedup:.3f} times as fast, bytes say {expected:.3f}")
    return found


def _decode(engine: Engine, prompt: tuple[int, ...], output: int) -> float:
    """Seconds an output token, the first excepted."""
    workload = Workload("pruning", None, (), (Item(prompt, output),))
    seconds = tpot(run_load(EngineTarget(engine), workload).records[0])
    if seconds is None:
        raise RuntimeError("a request gave no tokens")
    return seconds


def _save(results: Mapping[str, Any], path: Path | None) -> None:
    if path is not None:
        document = {"machine": detect_machine().as_dict(), "results": results}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2, default=str) + "\n", encoding="utf-8")


def _report(label: str, words: str) -> None:
    print(f"{label}: {words}", file=sys.stderr, flush=True)


def main() -> None:
    """Runs the variants and prints the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument(
        "--pass",
        dest="passes",
        action="append",
        type=json.loads,
        help="a pass as in recipes, instead of the usual ones; may be given several times",
    )
    parser.add_argument("--tokens", type=int, default=2048, help="held-out tokens (%(default)s)")
    parser.add_argument(
        "--calibration", type=int, default=2048, help="tokens that passes see (%(default)s)"
    )
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--format", default="int8:32", help="weights of the race (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=int, default=48, help="tokens a round (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = measure(
        load_model(options.model), options.passes or VARIANTS, default_corpus(), options
    )
    print(json.dumps(results, indent=2, default=str))


if __name__ == "__main__":
    main()

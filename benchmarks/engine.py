"""What running requests notice of others, and what a shared beginning saves.

    python benchmarks/engine.py jitter --json jitter.json
    python benchmarks/engine.py prefix --json prefix.json

`jitter`: sequences decode side by side; in turns nothing else happens, or a long prompt arrives and
is read. Inter-token latency is the time between two outputs of a sequence as the caller of
`Engine.step` sees them. The goal is a 99th percentile at most 2 times that without prompts.

`prefix`: requests come alone, in pairs whose prompts share their beginning. The time to the first
token of the second is to be at most a tenth of the first's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from hasten.generation import Engine, engine_options
from hasten.machine import detect_machine
from hasten.measure.corpus import default_corpus
from hasten.measure.interference import between, read_cpu_times
from hasten.models import load_model
from hasten.types import Output, Request, SamplingParams

PROMPT = 128
"""Tokens of the prompts of the sequences that decode."""


def main() -> int:
    """Runs one of the two and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("jitter", "prefix"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--weights", help="as EngineOptions.weights")
    parser.add_argument("--kv", help="as EngineOptions.kv")
    parser.add_argument("--stretch", type=float, help="as EngineOptions.prefill_stretch")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--running", type=int, default=8, help="sequences that decode (jitter)")
    parser.add_argument("--prompt", type=int, default=2000, help="tokens that arrive (jitter)")
    parser.add_argument("--shared", type=int, default=1000, help="tokens in common (prefix)")
    parser.add_argument("--own", type=int, default=20, help="tokens of each alone (prefix)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    given = {name: getattr(arguments, name) for name in ("threads", "weights", "kv")}
    options = engine_options(model, prefill_stretch=arguments.stretch, **given)
    before = read_cpu_times()
    with Engine(model, options) as engine:
        measure = jitter if arguments.what == "jitter" else prefix
        found = measure(engine, arguments)
        report: dict[str, Any] = {
            "schema": f"hasten.engine.{arguments.what}/1",
            "model": model.name,
            "formats": sorted(set(engine.formats.values())),
            "kv": options.kv,
            "threads": engine.threads,
            "isa": engine.isa,
            "prefill_stretch": options.prefill_stretch,
            "machine": detect_machine().as_dict(),
            **found,
        }
    shared = between(before, read_cpu_times())
    report["interference"] = None if shared is None else asdict(shared)
    for name, value in found.items():
        print(f"{name:28} {value}")
    if shared is not None:
        print(f"{'used by others':28} {shared.others + shared.steal:.1%} of the processor")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


def jitter(engine: Engine, arguments: argparse.Namespace) -> dict[str, Any]:
    """Inter-token latencies without and with long prompts, in turns."""
    texts = pieces(engine, 0)
    room = engine.context - PROMPT - 1
    for number in range(arguments.running):
        sampling = SamplingParams(max_tokens=room, ignore_eos=True)
        engine.submit(Request(f"running-{number}", next(texts)(PROMPT), sampling))
    gaps: dict[str, list[float]] = {"quiet": [], "busy": []}
    last: dict[str, float] = {}
    waits: list[float] = []

    def step(phase: str) -> list[Output]:
        outputs = engine.step()
        now = perf_counter()
        for output in outputs:
            if output.request_id.startswith("running"):
                if len(last) == arguments.running:
                    gaps[phase].append(now - last[output.request_id])
                last[output.request_id] = now
        return outputs

    while len(last) < arguments.running:
        step("quiet")
    for phase in gaps.values():
        phase.clear()
    for number in range(arguments.rounds):
        name = f"prompt-{number}"
        prompt = next(texts)(arguments.prompt)
        started, steps = perf_counter(), 1
        engine.submit(Request(name, prompt, SamplingParams(max_tokens=1)))
        while all(output.request_id != name for output in step("busy")):
            steps += 1
        waits.append(perf_counter() - started)
        for _ in range(steps):
            step("quiet")
    if len(last) < arguments.running or not engine.has_work:
        raise SystemExit("a running sequence ended: fewer rounds, or a longer context")
    quiet, busy = (percentiles(gaps[phase]) for phase in ("quiet", "busy"))
    return {
        "running": arguments.running,
        "prompt_tokens": arguments.prompt,
        "quiet_itl_s": quiet,
        "busy_itl_s": busy,
        "p50_ratio": busy["p50"] / quiet["p50"],
        "p99_ratio": busy["p99"] / quiet["p99"],
        "prompt_ttft_s": statistics.median(waits),
        "prompt_tokens_per_s": arguments.prompt / statistics.median(waits),
    }


def prefix(engine: Engine, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times to the first token of prompts that begin anew, and of others that begin like them."""
    texts = pieces(engine, 1)
    first, second, cached = [], [], []
    first_token(engine, next(texts)(arguments.shared))
    for _ in range(arguments.rounds):
        shared = next(texts)(arguments.shared)
        anew, again = (first_token(engine, shared + next(texts)(arguments.own)) for _ in "12")
        first.append(anew[0])
        second.append(again[0])
        cached.append(again[1])
    ratio = statistics.median(after / before for before, after in zip(first, second, strict=True))
    return {
        "shared_tokens": arguments.shared,
        "own_tokens": arguments.own,
        "cached_tokens": statistics.median(cached),
        "first_ttft_s": statistics.median(first),
        "second_ttft_s": statistics.median(second),
        "ttft_ratio": ratio,
    }


def first_token(engine: Engine, prompt: tuple[int, ...]) -> tuple[float, int]:
    """Seconds to the first output, and tokens that the prefix cache held."""
    started = perf_counter()
    output = next(engine.generate(prompt, SamplingParams(max_tokens=1, ignore_eos=True)))
    return perf_counter() - started, output.cached_tokens


def pieces(engine: Engine, seed: int) -> Iterator[Any]:
    """Functions that cut prompts of a length out of English text, at places of their own."""
    ids = engine.model.tokenizer.encode(default_corpus().text, add_special=False)
    rng = random.Random(seed)
    for _ in itertools.count():
        begin = rng.randrange(len(ids) // 2)
        yield lambda length, begin=begin: tuple(ids[begin : begin + length])


def percentiles(values: list[float]) -> dict[str, float]:
    """Of a sample of seconds."""
    found = np.percentile(values, [50, 90, 99, 100])
    names = ("p50", "p90", "p99", "max")
    return {"n": len(values), **dict(zip(names, map(float, found), strict=True))}


if __name__ == "__main__":
    sys.exit(main())

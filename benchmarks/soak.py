"""Hours of random traffic: no token may be wrong, no block lost, and memory must not grow.

    make soak SECONDS=1800

Requests arrive at random from another thread, with priorities, deadlines and shared beginnings,
greedy or sampled, one output or two; some are cancelled. The KV cache is too small for them, so
that sequences give way to others again and again. Each token is compared at once with the
transcript of the same request alone in an engine of its own, without prefix cache. At the end all
KV blocks must be back, and resident memory must have stayed as it was after the first third.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from hasten.generation import Engine, engine_options
from hasten.generation.kvcache import KV_BLOCK
from hasten.machine import detect_machine
from hasten.measure.corpus import default_corpus
from hasten.measure.footprint import kv_bytes_per_token
from hasten.models import Model, load_model
from hasten.types import Output, Request, SamplingParams

CONTEXT = 1024
BLOCKS = 40
"""Enough for one of the longest sequences, too few for those that run."""
SEQUENCES = 8
IN_FLIGHT = 24
KINDS = 48
SAMPLE_SECONDS = 1.0
SAMPLES_A_LINE = 30
MOST_GROWTH = 16 << 20
"""Bytes that resident memory may rise from the second third to the last: what allocators do."""


@dataclass(frozen=True)
class Kind:
    """A request that comes again and again, and the tokens that each of its outputs must have."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    transcripts: tuple[tuple[int, ...], ...]


@dataclass
class Ledger:
    """What clients asked for and what they got; the two threads share it under its lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    kinds: dict[str, Kind] = field(default_factory=dict)
    received: dict[tuple[str, int], int] = field(default_factory=dict)
    open_outputs: dict[str, int] = field(default_factory=dict)
    cancelled: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def add(self, name: str, kind: Kind) -> None:
        """A request was submitted."""
        with self.lock:
            self.kinds[name] = kind
            self.open_outputs[name] = kind.sampling.n
            self.counts["submitted"] += 1

    def cancel(self, name: str) -> None:
        """A request was cancelled just now."""
        with self.lock:
            if name in self.kinds:
                self.cancelled[name] = monotonic()
                self.counts["cancelled"] += 1

    def forget_cancelled(self, started: float) -> None:
        """A step that began after a cancellation is over: no more of that request may come."""
        with self.lock:
            for name in [n for n, when in self.cancelled.items() if when < started]:
                self._close(name)

    def receive(self, output: Output, started: float) -> None:
        """Compares an output with the transcript."""
        name, index = output.request_id, output.index
        with self.lock:
            if name not in self.kinds or self.cancelled.get(name, started) < started:
                self.errors.append(f"{name}: an output after the end")
                return
            at = self.received.get((name, index), 0)
            self.received[name, index] = at + len(output.tokens)
            self.counts["tokens"] += len(output.tokens)
            want = self.kinds[name].transcripts[index]
            if want[at : at + len(output.tokens)] != output.tokens:
                self.errors.append(f"{name}.{index}: {output.tokens} at {at}, not {want[at]}")
            if output.finish_reason is not None:
                self.counts[output.finish_reason] += 1
                if output.finish_reason != "deadline" and at + len(output.tokens) != len(want):
                    self.errors.append(f"{name}.{index}: ended after {at} of {len(want)} tokens")
                self.open_outputs[name] -= 1
                if self.open_outputs[name] == 0:
                    self._close(name)

    def _close(self, name: str) -> None:
        kind = self.kinds.pop(name, None)
        self.cancelled.pop(name, None)
        self.open_outputs.pop(name, None)
        for index in range(kind.sampling.n if kind else 0):
            self.received.pop((name, index), None)


def main() -> int:
    """Runs the soak; 0 if everything held."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    kinds = make_kinds(model, arguments.seed)
    print(f"{len(kinds)} transcripts, {sum(len(t) for k in kinds for t in k.transcripts)} tokens")
    report = soak(model, kinds, arguments.seconds, arguments.seed)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    for name in ("seconds", "counts", "statistics", "memory", "errors", "passed"):
        print(f"{name:12} {report[name]}")
    return 0 if report["passed"] else 1


def make_kinds(model: Model, seed: int) -> list[Kind]:
    """Requests of many lengths, and their transcripts from an engine that runs one at a time."""
    rng = random.Random(seed)
    ids = model.tokenizer.encode(default_corpus().text, add_special=False)
    options = engine_options(model, max_context=CONTEXT, max_sequences=1, prefix_cache=False)
    stops = tuple(model.tokenizer.encode(".\n", add_special=False))
    beginnings = [rng.randrange(len(ids) // 2) for _ in range(KINDS // 4)]
    kinds = []
    with Engine(model, options) as engine:
        for number in range(KINDS):
            begin = rng.choice(beginnings)
            shared, own = rng.randrange(1, 200), rng.randrange(0, 100)
            elsewhere = rng.randrange(len(ids) // 2)
            prompt = (*ids[begin : begin + shared], *ids[elsewhere : elsewhere + own])
            sampling = SamplingParams(
                max_tokens=int(rng.triangular(1, 400, 120)),
                temperature=0.8 * (number % 2),
                seed=number,
                n=1 + (number % 8 == 7),
                stop_tokens=stops if number % 4 == 1 else (),
                ignore_eos=number % 3 > 0,
            )
            tokens: list[list[int]] = [[] for _ in range(sampling.n)]
            for output in engine.generate(prompt, sampling):
                tokens[output.index] += output.tokens
            kinds.append(Kind(prompt, sampling, tuple(map(tuple, tokens))))
    return kinds


def soak(model: Model, kinds: list[Kind], seconds: float, seed: int) -> dict[str, Any]:
    """Drives the engine while another thread asks; a JSON-ready report."""
    options = engine_options(model, max_context=CONTEXT, max_sequences=SEQUENCES)
    kv_memory = BLOCKS * KV_BLOCK * kv_bytes_per_token(model.config, options.kv)
    options = replace(options, kv_memory=kv_memory)
    ledger = Ledger()
    memory: list[tuple[float, int]] = []
    with Engine(model, options) as engine:
        begun = monotonic()
        over = threading.Event()
        client = threading.Thread(target=ask, args=(engine, ledger, kinds, over, seed))
        client.start()
        while monotonic() - begun < seconds or engine.has_work or client.is_alive():
            if monotonic() - begun >= seconds:
                over.set()
            started = monotonic()
            if engine.wait(0.05):
                for output in engine.step():
                    ledger.receive(output, started)
                ledger.forget_cancelled(started)
            if not memory or monotonic() - begun - memory[-1][0] >= SAMPLE_SECONDS:
                memory.append((monotonic() - begun, resident()))
                if len(memory) % SAMPLES_A_LINE == 0:
                    tell(engine, memory[-1], ledger)
            if ledger.errors:
                over.set()
        client.join()
        statistics = engine.statistics()
        lost = statistics.kv_blocks_used
        # Every block can be had again, those with content too.
        engine.forget_prefixes()
        lost += engine.statistics().kv_blocks_used + engine.statistics().kv_blocks_cached
    growth = memory_growth(memory)
    never = [
        what
        for what in ("cancelled", "deadline", "length", "stop")
        if ledger.counts[what] == 0 and seconds >= 60
    ]
    errors = ledger.errors + [f"still open: {name}" for name in ledger.kinds]
    errors += [f"never happened: {what}" for what in never]
    if statistics.preemptions == 0 or statistics.cached_tokens == 0:
        errors.append("no sequence gave way, or none shared a beginning: this proves little")
    return {
        "schema": "hasten.soak/1",
        "model": model.name,
        "seconds": monotonic() - begun,
        "seed": seed,
        "machine": detect_machine().as_dict(),
        "counts": dict(ledger.counts),
        "statistics": {**asdict(statistics), "lost_blocks": lost},
        "memory": {"samples": len(memory), "growth_bytes": growth, "allowed": MOST_GROWTH},
        "memory_samples": memory,
        "errors": errors[:50],
        "passed": not errors and lost == 0 and growth <= MOST_GROWTH,
    }


def ask(
    engine: Engine, ledger: Ledger, kinds: list[Kind], over: threading.Event, seed: int
) -> None:
    """Submits and cancels at random until it is over, in bursts and pauses."""
    rng = random.Random(seed + 1)
    number = 0
    while not over.wait(rng.expovariate(6.0)):
        mine = list(ledger.kinds)
        if mine and rng.random() < 0.15:
            name = rng.choice(mine)
            engine.cancel(name)
            ledger.cancel(name)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 5))):
            if len(ledger.kinds) >= IN_FLIGHT:
                break
            number += 1
            name, kind = f"request-{number}", rng.choice(kinds)
            late = rng.uniform(0.0, 20.0) if rng.random() < 0.2 else None
            ledger.add(name, kind)
            engine.submit(
                Request(
                    name,
                    kind.prompt,
                    kind.sampling,
                    priority=rng.choice((0, 0, 0, 1, 1, 2)),
                    deadline=None if late is None else monotonic() + late,
                    tenant=rng.choice(("", "", "", "other")),
                )
            )


def tell(engine: Engine, now: tuple[float, int], ledger: Ledger) -> None:
    """One line of what goes on, to stderr."""
    figures = engine.statistics()
    print(
        f"{now[0]:6.0f} s  {now[1] >> 20} MiB  running {figures.running} waiting {figures.waiting} "
        f"tokens {ledger.counts['tokens']} preemptions {figures.preemptions} "
        f"errors {len(ledger.errors)}",
        file=sys.stderr,
    )


def resident() -> int:
    """Resident bytes of this process."""
    with Path("/proc/self/statm").open(encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def memory_growth(samples: list[tuple[float, int]]) -> float:
    """Bytes by which the median of the last third is above that of the one before."""
    sizes = [size for _, size in samples]
    third = max(1, len(sizes) // 3)
    return float(np.median(sizes[-third:]) - np.median(sizes[-2 * third : -third] or sizes))


if __name__ == "__main__":
    sys.exit(main())

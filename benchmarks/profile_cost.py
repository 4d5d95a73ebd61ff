"""What taking a profile costs, and how much of a step it accounts for.

    python benchmarks/profile_cost.py [--model smollm2] [--batch 1]

Sequences decode; in turns a few steps run with a profile and a few without, so that a machine whose
speed moves is compared with itself. The cost is the ratio of the medians over turns of their median
steps, with an interval from a bootstrap over pairs of turns. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from contextlib import nullcontext
from dataclasses import asdict
from time import perf_counter
from typing import Any

from hasten.generation import Engine, engine_options
from hasten.generation.stopwatch import EngineProfile
from hasten.machine import detect_machine
from hasten.measure.corpus import default_corpus
from hasten.measure.interference import between, read_cpu_times
from hasten.measure.profile.prompts import PromptSource
from hasten.measure.statistics import bootstrap_ratio_of_medians
from hasten.models import load_model
from hasten.types import Request, SamplingParams

GOAL = 1.03
"""Most that a step with a profile may take of one without."""


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--weights", help="as EngineOptions.weights")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int, default=1, help="sequences side by side")
    parser.add_argument("--context", type=int, default=128, help="tokens of the prompts")
    parser.add_argument("--turns", type=int, default=60, help="with a profile, and as many without")
    parser.add_argument("--steps", type=int, default=8, help="of a turn")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    steps_in_all = 2 * arguments.turns * arguments.steps + 2 * arguments.batch + 8
    options = engine_options(
        model,
        weights=arguments.weights,
        threads=arguments.threads,
        max_sequences=arguments.batch,
        max_context=arguments.context + steps_in_all,
        prefill_stretch=math.inf,
        prefix_cache=False,
    )
    before = read_cpu_times()
    with Engine(model, options) as engine:
        report: dict[str, Any] = {
            "schema": "hasten.profile_cost/1",
            "model": model.name,
            "formats": sorted(set(engine.formats.values())),
            "isa": engine.isa,
            "threads": engine.threads,
            "batch": arguments.batch,
            **measure(engine, arguments),
            "machine": detect_machine().as_dict(),
        }
    shared = between(before, read_cpu_times())
    report["interference"] = None if shared is None else asdict(shared)
    print(json.dumps(report, indent=2))
    return 0 if report["decode_ratio"]["estimate"] < GOAL else 1


def measure(engine: Engine, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median steps of turns with a profile and without, and what the profiles account for."""
    prompts = PromptSource(engine.model.tokenizer, default_corpus(), 0)
    room = engine.context - arguments.context - 1
    sampling = SamplingParams(max_tokens=room, ignore_eos=True)
    reading = set()
    for number, prompt in enumerate(prompts.draw(arguments.batch, arguments.context)):
        engine.submit(Request(f"decoding-{number}", prompt, sampling))
        reading.add(f"decoding-{number}")
    while reading:
        reading.difference_update(output.request_id for output in engine.step())
    times: dict[str, list[float]] = {"off": [], "on": []}
    profiles: list[EngineProfile] = []
    for turn in range(arguments.turns):
        for name in ("off", "on") if turn % 2 == 0 else ("on", "off"):
            with engine.profile() if name == "on" else nullcontext() as profile:
                times[name].append(statistics.median(steps(engine, arguments.steps)))
            if profile is not None:
                profiles.append(profile)
    ratio = bootstrap_ratio_of_medians(times["on"], times["off"], paired=True, seed=0)
    return {
        "off_step_s": statistics.median(times["off"]),
        "on_step_s": statistics.median(times["on"]),
        "decode_ratio": ratio.as_dict(),
        **accounted(profiles),
    }


def steps(engine: Engine, count: int) -> list[float]:
    """Seconds of each of so many steps."""
    found = []
    for _ in range(count):
        started = perf_counter()
        engine.step()
        found.append(perf_counter() - started)
    return found


def accounted(profiles: list[EngineProfile]) -> dict[str, Any]:
    """Shares of the steps with a profile that were accounted for."""
    whole = sum(one.steps["decode"] for one in profiles)
    found = {
        "ops": sum(float(one.ops.phases["decode"].ops[0].sum()) for one in profiles),
        "around the ops": sum(
            one.ops.phases["decode"].seconds - float(one.ops.phases["decode"].ops[0].sum())
            for one in profiles
        ),
    }
    for part in ("scheduling", "sampling", "detokenising"):
        found[part] = sum(one.parts["decode"][part] for one in profiles)
    shares = {name: seconds / whole for name, seconds in found.items()}
    return {"accounted": sum(shares.values()), "shares": shares}


if __name__ == "__main__":
    sys.exit(main())

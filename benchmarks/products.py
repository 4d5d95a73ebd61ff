"""How near the matrix products come to what the machine can do: of a prompt, and of one token.

    python benchmarks/products.py [--model smollm2] [--weights int8:32]

Each round takes the machine's limits and the products one after the other, so that a machine whose
speed moves is compared with itself: a prompt's products with the rate of integer multiply-adds,
those of one token with a stream of as many bytes as their weights have. Other ops are given beside
them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hasten import _native
from hasten.generation import engine_options
from hasten.generation.kvcache import blocks_for
from hasten.generation.native import NativeExecutor
from hasten.machine import detect_machine
from hasten.measure.footprint import product_matrices
from hasten.models import load_model


def main() -> int:
    """Measures and prints medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--weights", help="as EngineOptions.weights")
    parser.add_argument("--kv", help="as EngineOptions.kv")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=512, help="of the prompt")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    given = {name: getattr(arguments, name) for name in ("threads", "weights", "kv")}
    options = replace(engine_options(model, **given), chunk=arguments.tokens)
    executor = NativeExecutor(model, options, blocks_for(arguments.tokens), arguments.tokens)
    layers, head = product_matrices(model.config, model.weights)
    sizes = [one.shape[0] * one.shape[1] for one in (*layers, *head)]
    operations = 2 * sum(sizes[: len(layers)]) * arguments.tokens + 2 * sum(sizes[len(layers) :])
    rounds = [
        one_round(executor, arguments.tokens, operations) for _ in range(arguments.rounds + 1)
    ]
    report: dict[str, Any] = {
        "schema": "hasten.products/1",
        "model": model.name,
        "formats": sorted(set(executor.formats.values())),
        "kv": options.kv,
        "isa": executor.isa,
        "machine": detect_machine().as_dict(),
        "rounds": rounds[1:],
    }
    for name, value in medians(report["rounds"]).items():
        print(f"{name:40} {value:.4g}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


def one_round(executor: NativeExecutor, tokens: int, operations: int) -> dict[str, Any]:
    """The limits of the machine now, and what the products reach of them."""
    threads, weights = executor.thread_choice, executor.memory["weights"]
    rate = _native.int8_rate(threads.for_tokens(tokens), executor.isa)
    prompt = executor.op_seconds(tokens)
    rate = (rate + _native.int8_rate(threads.for_tokens(tokens), executor.isa)) / 2
    megabytes = max(16, round(weights / 2**20))
    stream = _native.stream_bandwidth(threads.for_tokens(1), megabytes)
    token = executor.op_seconds(1)
    stream = (stream + _native.stream_bandwidth(threads.for_tokens(1), megabytes)) / 2
    return {
        "int8_operations_per_s": rate,
        "prompt_seconds": prompt,
        "prompt_products_of_int8_rate": operations / prompt["Linear"] / rate,
        "stream_bytes_per_s": stream,
        "token_seconds": token,
        "token_products_of_stream": weights / token["Linear"] / stream,
    }


def medians(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Of each figure, those by kind of op in milliseconds."""
    found: dict[str, float] = {}
    for name, first in rounds[0].items():
        if isinstance(first, dict):
            for kind in sorted(first, key=first.__getitem__, reverse=True):
                value = statistics.median(one[name][kind] for one in rounds)
                found[f"{name.removesuffix('_seconds')} {kind}, ms"] = 1e3 * value
        else:
            found[name] = statistics.median(one[name] for one in rounds)
    return found


if __name__ == "__main__":
    sys.exit(main())

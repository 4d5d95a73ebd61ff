"""Texts to vectors: Hasten beside sentence-transformers, transformers and ONNX Runtime.

    python benchmarks/embeddings.py --install       # once: the peers' own environment
    python benchmarks/embeddings.py                 # measures, prints a table, writes JSON

The model is all-MiniLM-L6-v2 (`minilm`); the texts are queries, sentences and passages of Python's
documentation. Each configuration is a process of its own that stays loaded; a round lets each of
them, in an order drawn anew, embed texts of one kind, from texts to vectors, tokens included. The
texts differ from round to round. "cosine" is the least similarity of a vector to that of
transformers in float32.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from peers_environment import find_python, install
from peers_process import PeerError, PeerProcess

from hasten.machine import detect_machine
from hasten.measure.corpus import default_corpus
from hasten.models import load_model

ROOT = Path(__file__).resolve().parent.parent
PAUSE = 0.25  # seconds in which the threads of the peer before stop spinning
REFERENCE = "transformers fp32"
KINDS = {"query": 160, "sentence": 120, "passage": 24}
"""Texts of each kind in a round."""
WORDS = {"query": 6, "passage": 110}

# name: library, settings
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "hasten f32": ("hasten", {"weights": "f32"}),
    "hasten bf16": ("hasten", {"weights": "bf16"}),
    "hasten int8": ("hasten", {"weights": "int8"}),
    REFERENCE: ("transformers", {}),
    "sentence-transformers": ("sentence-transformers", {}),
    "onnxruntime fp32": ("onnxruntime", {"cache": str(ROOT / "build" / "onnx-minilm")}),
    "onnxruntime int8": (
        "onnxruntime",
        {"cache": str(ROOT / "build" / "onnx-minilm"), "int8": True},
    ),
}


def main() -> int:
    """Parses the command line, measures and reports."""
    arguments = parse_arguments()
    if arguments.install:
        failed = install(["embedding"])
        for name, why in failed.items():
            print(f"error: {name}: {why}", file=sys.stderr)
        return 1 if failed else 0
    texts = some_texts()
    started: dict[str, PeerProcess] = {}
    try:
        for name in arguments.only or CONFIGURATIONS:
            try:
                started[name] = start(name, arguments)
            except PeerError as error:
                print(f"left out {name}: {error}", file=sys.stderr)
        seconds, tokens = measure(started, texts, arguments)
        cosines = compare(started, [one for found in texts.values() for one in found[:16]])
    finally:
        for process in started.values():
            process.close()
    report = {
        "schema": "hasten.embeddings/1",
        "threads": arguments.threads,
        "texts_a_round": KINDS,
        "tokens_a_text": tokens,
        "machine": detect_machine().as_dict(),
        "configurations": {
            name: {**process.description, "cosine": cosines.get(name), "seconds": seconds[name]}
            for name, process in started.items()
        },
    }
    print_report(report)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\nwrote {arguments.json}", file=sys.stderr)
    return 0 if started else 1


def parse_arguments() -> argparse.Namespace:
    """The options of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--install", action="store_true", help="install the peers and end")
    parser.add_argument("--only", action="append", choices=list(CONFIGURATIONS), metavar="NAME")
    parser.add_argument("--peer-python", action="append", type=Path, default=[], metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--json", type=Path, default=ROOT / "build" / "embeddings.json", metavar="FILE"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def some_texts() -> dict[str, list[str]]:
    """Texts by kind, in an order of no meaning."""
    text = " ".join(default_corpus().text.split())
    words = text.split()
    found = {
        kind: [" ".join(words[at : at + size]) for at in range(0, len(words) - size, size)]
        for kind, size in WORDS.items()
    }
    sentences = [one for one in re.split(r"(?<=[.!?]) ", text) if 20 < len(one) < 400]
    found["sentence"] = sentences
    for one in found.values():
        random.Random(0).shuffle(one)
    return {kind: found[kind] for kind in KINDS}


def start(name: str, arguments: argparse.Namespace) -> PeerProcess:
    """Starts one configuration and loads the model."""
    library, settings = CONFIGURATIONS[name]
    kind = "hasten" if library == "hasten" else "embedding"
    process = PeerProcess("embedding", find_python(kind, arguments.peer_python))
    try:
        model = str(load_model("minilm").path)
        process.description = process.call(
            "load", library=library, model=model, threads=arguments.threads, **settings
        )
    except PeerError:
        process.close()
        raise
    return process


def measure(
    started: Mapping[str, PeerProcess],
    texts: Mapping[str, Sequence[str]],
    arguments: argparse.Namespace,
) -> tuple[dict[str, dict[str, list[float]]], dict[str, float]]:
    """Lets all of them take turns; the first round is a warm-up and not counted.

    Returns:
        Seconds of each round by configuration and kind of text, and tokens a text by kind.
    """
    order = random.Random(1)
    names = list(started)
    tokenizer = load_model("minilm").tokenizer
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(arguments.rounds + 1):
        for kind, count in KINDS.items():
            begin = number * count % (len(texts[kind]) - count)
            part = list(texts[kind][begin : begin + count])
            order.shuffle(names)
            for name in names:
                time.sleep(PAUSE)
                taken = started[name].call("embed", texts=part)
                if number:
                    seconds[name].setdefault(kind, []).append(taken)
        print(f"round {number} of {arguments.rounds}", file=sys.stderr)
    tokens = {
        kind: float(np.mean([len(tokenizer.encode(one)) for one in found[:500]]))
        for kind, found in texts.items()
    }
    return seconds, tokens


def compare(started: Mapping[str, PeerProcess], texts: Sequence[str]) -> dict[str, float]:
    """Least cosine of each configuration's vectors to those of the reference."""
    if REFERENCE not in started:
        return {}
    vectors = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, process in started.items():
            target = Path(folder) / "vectors.npy"
            process.call("vectors", texts=list(texts), target=str(target))
            vectors[name] = np.load(target).astype(np.float64)
    want = vectors[REFERENCE]
    return {name: float((found * want).sum(axis=1).min()) for name, found in vectors.items()}


def print_report(report: Mapping[str, Any]) -> None:
    """Prints texts a second, and the ratio to the reference over paired rounds."""
    print(f"| texts/s, {report['threads']} threads | {' | '.join(KINDS)} | cosine |")
    print(f"|---|{'---|' * (len(KINDS) + 1)}")
    found = report["configurations"]
    base = found.get(REFERENCE, {}).get("seconds", {})
    for name, one in found.items():
        cells = []
        for kind, count in KINDS.items():
            rates = [count / taken for taken in one["seconds"][kind]]
            ratio = [b / a for a, b in zip(one["seconds"][kind], base.get(kind, ()), strict=False)]
            times = f" ({median(ratio):.2f} x)" if ratio else ""
            cells.append(f"{median(rates):.0f}{times}")
        cosine = "" if one["cosine"] is None else f"{one['cosine']:.5f}"
        print(f"| {name} | {' | '.join(cells)} | {cosine} |")
    tokens = ", ".join(f"{kind} {mean:.0f}" for kind, mean in report["tokens_a_text"].items())
    print(f"\ntokens a text: {tokens}; {report['machine']['cpu']}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PeerError as failure:
        sys.exit(f"error: {failure}")

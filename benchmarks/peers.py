"""Hasten beside its peers: one run, in turns, on the same prompts and the same two threads.

    python benchmarks/peers.py --install            # once: the peers' own environment
    python benchmarks/peers.py                      # measures, prints a table, writes JSON
    python benchmarks/peers.py --artefact DIR       # with what `hasten optimize` made

Each configuration is a process of its own that stays loaded; a round lets each of them, in an order
drawn anew, read a prompt of 512 tokens and decode after one of 256. So whatever slows this machine
for a while slows all of them, and the ratios hold where the rates drift. Prompts differ from round
to round. Peers are called as directly as they can be, without their own Python loops where those
cost time; Hasten through `Engine.generate`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers_environment import ENVIRONMENT, find_python, install
from peers_process import PeerError, PeerProcess
from peers_report import Figures, build_report, markdown

from hasten import _native
from hasten.machine import detect_machine
from hasten.measure.corpus import default_corpus
from hasten.measure.interference import CpuTimes, read_cpu_times
from hasten.models import Model, load_model

ROOT = Path(__file__).resolve().parent.parent
PAUSE = 0.25  # seconds in which the thread pool of the peer before stops spinning

# name: kind of peer, form of the file if not the model's own, settings
CONFIGURATIONS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "hasten artefact": ("hasten", None, {}),
    "hasten carried": ("hasten", None, {"kv": "bf16"}),
    "hasten carried, int8 KV": ("hasten", None, {"kv": "int8"}),
    "hasten int8:32": ("hasten", None, {"weights": "int8:32"}),
    "llama.cpp Q4_1 as carried": ("llama_cpp", None, {}),
    "llama.cpp Q4_0": ("llama_cpp", "Q4_0", {}),
    "llama.cpp Q8_0": ("llama_cpp", "Q8_0", {}),
    "transformers fp32": ("transformers", "float32", {"dtype": "float32"}),
    "transformers bf16": ("transformers", "float32", {"dtype": "bfloat16"}),
    "openvino-genai": ("openvino", None, {}),
}
# Left out unless asked for: slow on processors without bf16, slow to install, or of less interest.
OPTIONAL = ("hasten carried, int8 KV", "transformers bf16", "openvino-genai")
LEAST_ROUNDS = 3


def main() -> int:
    """Parses the command line, measures and reports."""
    arguments = parse_arguments()
    if arguments.install:
        install(openvino=arguments.all)
        return 0
    model = load_model("smollm2")
    started, notes = {}, []
    try:
        for name in chosen(arguments):
            try:
                started[name] = start(name, arguments, model)
            except PeerError as error:
                notes.append(f"left out {name}: {error}")
                print(notes[-1], file=sys.stderr)
        rounds, conditions = measure(started, arguments, prompts(model, arguments))
        for process in started.values():
            process.description["rss_bytes"] = process.rss_bytes()
    finally:
        for process in started.values():
            process.close()
    report = build_report(
        rounds,
        conditions=conditions,
        settings={
            "model": model.name,
            "sha256": model.digest(),
            "threads": arguments.threads,
            "rounds": max((len(found.decode) for found in rounds.values()), default=0),
            "prefill_tokens": arguments.prefill,
            "decode_context": arguments.context,
            "decode_tokens": arguments.decode,
            "seed": arguments.seed,
        },
        machine=detect_machine().as_dict(),
        peers={name: process.description for name, process in started.items()},
        notes=notes,
    )
    print(markdown(report))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    arguments.json.with_suffix(".md").write_text(markdown(report) + "\n", encoding="utf-8")
    print(f"\nwrote {arguments.json} and {arguments.json.with_suffix('.md')}", file=sys.stderr)
    return 0 if started else 1


def parse_arguments() -> argparse.Namespace:
    """The options of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--install", action="store_true", help=f"make {ENVIRONMENT} and end")
    parser.add_argument(
        "--all", action="store_true", help=f"install and measure {' and '.join(OPTIONAL)} too"
    )
    parser.add_argument("--artefact", type=Path, help="measure this artefact of hasten optimize")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="a configuration, may be repeated"
    )
    parser.add_argument(
        "--peer-python",
        action="append",
        type=Path,
        default=[],
        metavar="PYTHON",
        help="another interpreter that may have peers installed, may be repeated",
    )
    parser.add_argument("--rounds", type=int, default=9, help="at most")
    parser.add_argument(
        "--seconds",
        type=float,
        default=220,
        help=f"begin no round after these, from the {LEAST_ROUNDS + 1}th on",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prefill prompt")
    parser.add_argument("--context", type=int, default=256, help="tokens before the decoded ones")
    parser.add_argument("--decode", type=int, default=48, help="tokens to decode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "peers.json", metavar="FILE")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.only or ()) - set(CONFIGURATIONS))
    if unknown:
        parser.error(f"no configuration {unknown[0]!r}; there are: {', '.join(CONFIGURATIONS)}")
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def chosen(arguments: argparse.Namespace) -> list[str]:
    """The configurations to measure."""
    names = arguments.only or [
        name for name in CONFIGURATIONS if arguments.all or name not in OPTIONAL
    ]
    return [name for name in names if name != "hasten artefact" or arguments.artefact]


def start(name: str, arguments: argparse.Namespace, model: Model) -> PeerProcess:
    """Starts one configuration and loads its model."""
    kind, form, settings = CONFIGURATIONS[name]
    process = PeerProcess(kind, find_python(kind, arguments.peer_python))
    try:
        path = arguments.artefact if name == "hasten artefact" else file_for(model, form, process)
        context = max(arguments.prefill + 1, arguments.context + arguments.decode + 1)
        begun = time.perf_counter()
        description = process.call(
            "load", model=str(path), threads=arguments.threads, context=context, **settings
        )
    except PeerError:
        process.close()
        raise
    process.description = {**description, "load_seconds": time.perf_counter() - begun}
    return process


def file_for(model: Model, form: str | None, peer: PeerProcess) -> Path:
    """The model as the peer wants it: a file that is there, or one made once and kept."""
    if form is None:
        return model.path
    target = ROOT / "build" / f"{model.path.stem}.{form}"
    if form == "float32":
        write_float32(model, target)
    else:
        target = target.with_name(f"{target.name}.gguf")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            peer.call("quantize", source=str(model.path), target=str(target), form=form)
    return target


def write_float32(model: Model, directory: Path) -> None:
    """Writes the dequantised weights as a Hugging Face directory."""
    from safetensors.numpy import save_file

    if (directory / "config.json").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to_float32() for name, tensor in model.weights.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.dumps(model.config.to_huggingface())
    (directory / "config.json").write_text(config, encoding="utf-8")


def prompts(model: Model, arguments: argparse.Namespace) -> list[tuple[list[int], list[int]]]:
    """A prompt to prefill and one to decode after, for the warm-up and each round."""
    ids = model.tokenizer.encode(default_corpus().text[:400_000], parse_special=False)
    generator = random.Random(arguments.seed)
    return [
        (cut(ids, arguments.prefill, generator), cut(ids, arguments.context, generator))
        for _ in range(arguments.rounds + 1)
    ]


def cut(ids: Sequence[int], count: int, generator: random.Random) -> list[int]:
    """A piece of the text."""
    begin = generator.randrange(len(ids) - count)
    return list(ids[begin : begin + count])


def measure(
    started: Mapping[str, PeerProcess],
    arguments: argparse.Namespace,
    prompts: Sequence[tuple[list[int], list[int]]],
) -> tuple[dict[str, Figures], dict[str, Any]]:
    """Lets all of them take turns; the first round is a warm-up and not counted."""
    order = random.Random(arguments.seed)
    figures = {name: Figures() for name in started}
    bandwidth, int8_rate, others = [], [], []
    names = list(started)
    deadline = time.monotonic() + arguments.seconds
    for number, (long_prompt, short_prompt) in enumerate(prompts):
        if number > LEAST_ROUNDS and time.monotonic() > deadline:
            break
        order.shuffle(names)
        for name in names:
            time.sleep(PAUSE)
            before, spent = read_cpu_times(), started[name].cpu_seconds()
            prefill = started[name].call("prefill", tokens=long_prompt)
            seconds, tokens = started[name].call(
                "decode", tokens=short_prompt, count=arguments.decode
            )
            if number == 0:
                continue
            figures[name].prefill.append(prefill)
            figures[name].decode.append(seconds)
            figures[name].tokens.append(tokens)
            others += share_of_others(before, read_cpu_times(), started[name].cpu_seconds() - spent)
        if number:
            time.sleep(PAUSE)
            bandwidth.append(_native.stream_bandwidth(arguments.threads))
            int8_rate.append(_native.int8_rate(arguments.threads, _native.isas()[0]))
            print(f"round {number} of {arguments.rounds}", file=sys.stderr)
    conditions = {
        "bandwidth_bytes_per_s": bandwidth,
        "int8_operations_per_s": int8_rate,
        "other_processes_share": others,
    }
    return figures, conditions


def share_of_others(
    before: CpuTimes | None, after: CpuTimes | None, peer_seconds: float
) -> list[float]:
    """Share of the cores that neither this process nor the peer used; empty where unknown."""
    if before is None or after is None:
        return []
    busy, own = after.busy - before.busy, after.own - before.own
    total = busy + after.idle - before.idle + after.steal - before.steal
    return [max(0.0, busy - own - peer_seconds) / total] if total > 0 else []


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PeerError as failure:
        sys.exit(f"error: {failure}")

"""Hasten beside its peers: one run, in turns, on the same prompts and the same threads.

    python benchmarks/peers.py --install            # once: the peers' own environments
    python benchmarks/peers.py                      # measures; writes JSON, tables and a chart
    python benchmarks/peers.py --model smollm2 --peer llama_cpp --rounds 3

Each configuration is a process of its own that stays loaded; a round lets each of them, in an order
drawn anew, read a prompt, decode after another, and run 16 sequences together. So whatever slows
this machine for a while slows all of them, and the ratios hold where the rates drift. Prompts
differ from round to round. A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers_accuracy import compare_all
from peers_chart import draw_ratios
from peers_environment import PEERS, find_python, install
from peers_figures import FORMULAS, summarize_model
from peers_files import Files
from peers_plan import PLANS, Configuration, Plan
from peers_process import PeerError, PeerProcess, check_room
from peers_report import markdown
from peers_rounds import PARTS, Prompts, Started, run_rounds, warm_up
from shapes import SHAPES

from hasten.machine import detect_machine
from hasten.measure.corpus import default_corpus
from hasten.models import load_model

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "build" / "models"


def main() -> int:
    """Parses the command line, measures and reports."""
    arguments = parse_arguments()
    if arguments.install:
        failed = install(arguments.peer or PEERS)
        for name, error in failed.items():
            print(f"cannot install {name}: {error}", file=sys.stderr)
        return 0
    for name in () if arguments.report else arguments.model or PLANS:
        measure(arrange(PLANS[name], arguments), arguments)
    return report(arguments)


def parse_arguments() -> argparse.Namespace:
    """The options of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--install", action="store_true", help="make the peers' environments and end")
    add("--model", action="append", choices=PLANS, help="may be repeated; all by default")
    add("--peer", action="append", choices=PEERS, help="may be repeated; all by default")
    add("--part", action="append", choices=PARTS, help="of a turn; may be repeated")
    add("--only", action="append", metavar="NAME", help="a configuration; may be repeated")
    add("--artefact", type=Path, help="what hasten optimize made of smollm2")
    add(
        "--peer-python",
        action="append",
        type=Path,
        default=[],
        metavar="PYTHON",
        help="another interpreter that may have peers installed, may be repeated",
    )
    add("--rounds", type=int, help="at most, instead of what the plan says")
    add("--seconds", type=float, help="of a model after which no round begins, from the fourth on")
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    add("--no-accuracy", action="store_true", help="leave out the comparison with float32")
    add("--report", action="store_true", help="measure nothing, put together what was measured")
    add("--fresh", action="store_true", help="forget earlier rounds")
    add("--json", type=Path, default=ROOT / "build" / "peers.json", metavar="FILE")
    arguments = parser.parse_args()
    names = {one.name for plan in PLANS.values() for one in plan.configurations}
    for name in arguments.only or ():
        if name not in names:
            parser.error(f"no configuration {name!r}; there are: {', '.join(sorted(names))}")
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def arrange(plan: Plan, arguments: argparse.Namespace) -> Plan:
    """The plan as the command line wants it."""

    def wanted(one: Configuration) -> bool:
        if one.form == "artefact" and arguments.artefact is None:
            return False
        if arguments.only:
            return one.name in arguments.only
        return one.ours or not arguments.peer or one.kind in arguments.peer

    return dataclasses.replace(
        plan,
        configurations=tuple(one for one in plan.configurations if wanted(one)),
        rounds=arguments.rounds or plan.rounds,
        seconds=plan.seconds if arguments.seconds is None else arguments.seconds,
        accuracy_tokens=0 if arguments.no_accuracy else plan.accuracy_tokens,
    )


def measure(plan: Plan, arguments: argparse.Namespace) -> None:
    """Measures one model, or goes on with it, and keeps what it finds round by round."""
    path = raw_file(arguments, plan.name)
    settings = describe(plan, arguments)
    raw = {} if arguments.fresh else read_json(path)
    if raw.get("settings") != settings:
        raw = {"settings": settings, "peers": {}, "failed": {}, "rounds": [], "accuracy": {}}
    if raw.get("complete"):
        say(plan.name, "is complete; --fresh measures it again")
        return
    peers: list[Started] = []
    try:
        raw["failed"] = start_all(plan, arguments, peers)
        raw["peers"] = {peer.configuration.name: peer.process.description for peer in peers}
        prompts = make_prompts(plan.name, arguments.seed)
        for peer in peers:
            say(plan.name, f"warms {peer.configuration.name} up")
            warm(peer, plan, prompts, arguments)
        go_round(raw, peers, plan, prompts, arguments, path)
        for peer in peers:
            raw["failed"] |= {
                f"{peer.configuration.name}, {part}": text for part, text in peer.failed.items()
            }
            if peer.process.alive:
                peer.process.description["rss_bytes"] = peer.process.rss_bytes()
        if plan.accuracy_tokens:
            raw["accuracy"] = compare_all(
                [peer for peer in peers if peer.process.alive],
                load_model(plan.name),
                tokens=plan.accuracy_tokens,
                threads=arguments.threads,
                seed=arguments.seed,
            )
    finally:
        for peer in peers:
            peer.process.close()
    raw["complete"] = True
    write_json(path, raw)


def start_all(plan: Plan, arguments: argparse.Namespace, peers: list[Started]) -> dict[str, str]:
    """Starts the configurations into `peers`; returns those that fail, with their errors."""
    pythons = arguments.peer_python
    files = Files(plan.name, MODELS, pythons, arguments.artefact)
    failed = {}
    for one in plan.configurations:
        say(plan.name, f"loads {one.name}")
        process = None
        try:
            path = files.path(one.form)
            check_room(path, widening=widening(one, path))
            process = PeerProcess(one.kind, find_python(one.kind, pythons))
            begun = time.perf_counter()
            found = process.call(
                "load",
                model=str(path),
                threads=arguments.threads,
                context=plan.workload.longest,
                sequences=plan.workload.sequences,
                **one.settings,
            )
        except PeerError as error:
            failed[one.name] = str(error)
            say(plan.name, f"leaves out {one.name}: {error}")
            if process is not None:
                process.close()
            continue
        seconds = time.perf_counter() - begun
        process.description = {**found, "load_seconds": seconds, "rss_bytes": process.rss_bytes()}
        peers.append(Started(one, process))
    return failed


def widening(one: Configuration, path: Path) -> float:
    """Bytes of a weight in memory over those in the file, copies that engines make included."""
    if one.form != "directory":
        return 1.5
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    width = {"bfloat16": 2, "float32": 4}
    return 1.2 * width[one.settings["dtype"]] / width[config.get("dtype", "float32")]


def warm(peer: Started, plan: Plan, prompts: Prompts, arguments: argparse.Namespace) -> None:
    """Warms one up; one that cannot even do that fails in the rounds, where it is noted."""
    try:
        warm_up(peer, plan.workload, prompts, arguments.part or PARTS)
    except PeerError as error:
        peer.failed["warm-up"] = str(error)
    for part, text in peer.failed.items():
        say(plan.name, f"{peer.configuration.name} fails at {part}: {text}")


def go_round(
    raw: dict[str, Any],
    peers: Sequence[Started],
    plan: Plan,
    prompts: Prompts,
    arguments: argparse.Namespace,
    path: Path,
) -> None:
    """Runs the rounds that are missing and saves each."""
    begun, done = time.monotonic(), len(raw["rounds"])
    for document in run_rounds(
        peers,
        plan,
        prompts,
        parts=arguments.part or PARTS,
        begin=done + 1,
        threads=arguments.threads,
        seed=arguments.seed,
    ):
        raw["rounds"].append(document)
        write_json(path, raw)
        each = (time.monotonic() - begun) / (document["number"] - done)
        left = min((plan.rounds - document["number"]) * each, plan.seconds)
        say(
            plan.name,
            f"round {document['number']} of {plan.rounds}, {each:.0f} s each, "
            f"at most {left / 60:.1f} min left",
        )


def report(arguments: argparse.Namespace) -> int:
    """Puts together what all models' files say; fails if there is nothing."""
    models = {}
    for name, plan in PLANS.items():
        raw = read_json(raw_file(arguments, name))
        if raw.get("rounds") and (not arguments.model or name in arguments.model):
            models[name] = summarize_model(raw, plan)
    document = {
        "schema": "hasten.peers/2",
        "machine": detect_machine().as_dict(),
        "models": models,
        "formulas": FORMULAS,
    }
    write_json(arguments.json, document)
    text = markdown(document)
    arguments.json.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    arguments.json.with_suffix(".svg").write_text(draw_ratios(document), encoding="utf-8")
    print(text)
    print(f"\nwrote {arguments.json}, .md and .svg beside it", file=sys.stderr)
    return 0 if models else 1


def describe(plan: Plan, arguments: argparse.Namespace) -> dict[str, Any]:
    """What must be equal for rounds of two runs to belong together."""
    return {
        "model": plan.name,
        "configurations": [one.name for one in plan.configurations],
        "workload": dataclasses.asdict(plan.workload),
        "parts": list(arguments.part or PARTS),
        "threads": arguments.threads,
        "seed": arguments.seed,
        "revision": revision(),
    }


def revision() -> str:
    """The commit that is measured, if it is a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def make_prompts(name: str, seed: int) -> Prompts:
    """Pieces of text for a model that knows text, else random tokens."""
    if name in SHAPES:
        size = SHAPES[name]["vocab_size"]
        return lambda number, count: random.Random(f"{seed} {number}").choices(
            range(256, size - 1024), k=count
        )
    ids = load_model(name).tokenizer.encode(default_corpus().text[:400_000], parse_special=False)

    def cut(number: int, count: int) -> list[int]:
        begin = random.Random(f"{seed} {number}").randrange(len(ids) - count)
        return list(ids[begin : begin + count])

    return cut


def raw_file(arguments: argparse.Namespace, model: str) -> Path:
    """Where the rounds of a model are kept."""
    folder: Path = arguments.json.parent / f"{arguments.json.stem}-rounds"
    return folder / f"{model}.json"


def read_json(path: Path) -> dict[str, Any]:
    """The document, or an empty one where there is none."""
    if not path.exists():
        return {}
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def write_json(path: Path, document: Any) -> None:
    """Replaces a file in one step, so that a run can be stopped at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def say(model: str, what: str) -> None:
    """Progress."""
    print(f"{model}: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PeerError as failure:
        sys.exit(f"error: {failure}")

"""What `hasten batch` reaches beside the engine alone, and what it loses when it is killed.

    .venv/bin/python benchmarks/batches.py throughput kills --json build/batches.json

throughput   the command, and the same requests in an engine alone, in turns
kills        the command and its engine killed 20 times at random moments and resumed; in the end
             every line must be answered once, as by a run that nothing disturbed
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parts import Part, Texts, report, run_parts

from hasten.generation import Engine, engine_options
from hasten.models import load_model
from hasten.types import Request, SamplingParams

URL = "/v1/chat/completions"
KILL_SEQUENCES = 8
"""At once, so that lines end at all times rather than in a few waves."""


class Batch:
    """An input, and the runs of the command over it.

    Args:
        options: Of the command line.
        folder: For the files.
        prompts: One a line.
        body: What each line asks for besides.
        sequences: That run at once.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        folder: Path,
        prompts: Sequence[str],
        body: dict[str, object],
        sequences: int,
    ) -> None:
        self.input = folder / "in.jsonl"
        self._model = options.model
        self._sequences = sequences
        lines = [
            {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": URL,
                "body": {"messages": [{"role": "user", "content": text}], "temperature": 0} | body,
            }
            for number, text in enumerate(prompts)
        ]
        self.input.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def start(self, output: Path, *more: str) -> subprocess.Popen[bytes]:
        """Starts the command."""
        command = [sys.executable, "-m", "hasten", "batch", self._model]
        command += [str(self.input), str(output), "--json", "-", *more]
        command += ["--max-sequences", str(self._sequences)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def run(self, output: Path, *more: str) -> dict[str, Any]:
        """Runs it to its end; returns its figures."""
        child = self.start(output, *more)
        printed, _ = child.communicate()
        if child.returncode:
            raise RuntimeError(f"hasten batch ended with status {child.returncode}")
        figures: dict[str, Any] = json.loads(printed)
        return figures


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of the command beside the engine's own, without loading the model."""
    texts = Texts(11)
    alone, batched, ratios = [], [], []
    engine = _Alone(options)
    with tempfile.TemporaryDirectory() as folder:
        body = {"max_tokens": options.tokens, "ignore_eos": True}
        for number in range(options.rounds + 1):
            prompts = [texts.draw() for _ in range(options.lines)]  # new: the engine's cache stays
            batch = Batch(options, Path(folder), prompts, body, options.max_sequences)
            ours = engine.run(prompts)
            figures = batch.run(Path(folder) / "out.jsonl", "--overwrite")
            if figures["failed"] or figures["output_tokens"] != options.lines * options.tokens:
                raise RuntimeError(f"not every line was answered: {figures}")
            if number == 0:
                continue  # warm-up
            alone.append(ours)
            batched.append(figures["output_tokens_per_s"])
            ratios.append(batched[-1] / ours)
            report(f"engine {ours:.0f} tok/s, batch {batched[-1]:.0f}: {ratios[-1]:.3f}")
    engine.close()
    return {
        "lines": options.lines,
        "output_tokens": options.tokens,
        "max_sequences": options.max_sequences,
        "engine_tokens_per_s": statistics.median(alone),
        "batch_tokens_per_s": statistics.median(batched),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


class _Alone:
    """The engine with all requests submitted at once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._model = load_model(options.model)
        if self._model.chat_template is None:
            raise SystemExit(f"{options.model} has no chat template")
        self._template = self._model.chat_template
        self._tokens = options.tokens
        chosen = engine_options(
            self._model, max_sequences=options.max_sequences, prefill_stretch=float("inf")
        )
        self._engine = Engine(self._model, chosen)

    def run(self, prompts: Sequence[str]) -> float:
        """Tokens a second, from the first prompt's text to the last token."""
        began = time.monotonic()
        for number, prompt in enumerate(prompts):
            text = self._template.render([{"role": "user", "content": prompt}])
            tokens = tuple(self._model.tokenizer.encode(text, add_special=False))
            sampling = SamplingParams(max_tokens=self._tokens, ignore_eos=True)
            self._engine.submit(Request(str(number), tokens, sampling))
        left, tokens_out = len(prompts), 0
        while left:
            for output in self._engine.step():
                tokens_out += len(output.tokens)
                left -= output.finish_reason is not None
        return tokens_out / (time.monotonic() - began)

    def close(self) -> None:
        """Frees the engine."""
        self._engine.close()


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """No line is lost or answered twice, or otherwise, whenever all processes are killed."""
    texts, chance = Texts(12), random.Random(options.seed)
    prompts = [texts.draw(chance.randrange(4, 12)) for _ in range(options.kill_lines)]
    with tempfile.TemporaryDirectory() as folder:
        batch = Batch(options, Path(folder), prompts, {"max_tokens": 16}, KILL_SEQUENCES)
        began = time.monotonic()
        figures = batch.run(Path(folder) / "whole.jsonl")
        whole = time.monotonic() - began
        starting = whole - figures["seconds"]
        report(f"undisturbed: {whole:.1f} s, of which {starting:.1f} s are its start")
        output = Path(folder) / "killed.jsonl"
        answered = [0]
        for number in range(options.kills):
            child = batch.start(output)
            if number % 2:  # while it answers; else while it starts, or a little later
                while child.poll() is None and _lines(output) == answered[-1]:
                    time.sleep(0.001)
                moment = chance.uniform(0.0, figures["seconds"] / options.kills)
            else:
                moment = chance.uniform(0.0, 2 * starting)
            if not _kill(child, moment):
                raise RuntimeError("it ended before it was killed; --kill-lines should be more")
            answered.append(_lines(output))
            report(f"kill {number + 1}: {answered[-1]} lines are answered")
        last = batch.run(output)
        expected, found = _answers(Path(folder) / "whole.jsonl"), _answers(output)
    result = {
        "kills": options.kills,
        "answered": answered[1:],
        "answered_before_last": last["answered_before"],
        "lines": len(prompts),
        "missing": len(expected.keys() - found.keys()),
        "twice": sum(len(texts) - 1 for texts in found.values()),
        "different": sum(found[name] != text for name, text in expected.items() if name in found),
        "failed": last["failed"],
    }
    report(json.dumps(result))
    return result


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _kill(child: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kills the command and its engine after so long; False if it ended before."""
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        engines = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        victims = [child.pid, *map(int, engines)]
        random.shuffle(victims)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        return True
    finally:
        child.communicate()
    return False


def _answers(path: Path) -> dict[str, list[object]]:
    """What each line got, by its name."""
    found: dict[str, list[object]] = {}
    for text in path.read_text().splitlines():
        answer = json.loads(text)
        response = answer["response"]
        kept = {name: response["body"][name] for name in ("choices", "usage")}
        del kept["usage"]["prompt_tokens_details"]  # what the cache held depends on the run
        found.setdefault(answer["custom_id"], []).append((response["status_code"], kept))
    if not found:
        raise RuntimeError(f"{path} has no answers")
    return found


PARTS: dict[str, Part] = {
    "throughput": throughput,
    "kills": kills,
}


def main() -> int:
    """Run the parts that are asked for; 1 if a line was lost, answered twice or otherwise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--max-sequences", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lines", type=int, default=128, help="of throughput")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer of throughput")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kill-lines", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    parser.add_argument("--json", type=Path, help="gets the results")
    options = parser.parse_args()
    wrong = run_parts(PARTS, options).get("kills", {})
    return int(any(wrong.get(name) for name in ("missing", "twice", "different", "failed")))


if __name__ == "__main__":
    sys.exit(main())

"""What ways to make weights 4-bit integers cost in accuracy, at equal size.

    python benchmarks/requantise.py [--parts methods mixed] [--model smollm2] [--json FILE]

The original is the model's file dequantised to float32. Candidates run as they would be served: on
the native executor, with int8 activations. Text is `pydoc_data.topics`: calibration sees its first
half, the figures are of its second half. Part "methods" compares rounding to nearest, AWQ and GPTQ
in one format; part "mixed" formats that are chosen by what they cost (needs torch) with one format
of as many bytes, token by token. With `--keep`, finished matrices stay in a directory, and a run
that was ended goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

from parts import report, run_parts

from hasten.generation import Engine, engine_options
from hasten.measure.accuracy import Accuracy, PairedSamples, Reference, excess, summarize
from hasten.measure.corpus import Corpus, Windows, cut_windows, default_corpus
from hasten.models import Model, load_model
from hasten.optimize.passes import make_pass
from hasten.optimize.passes.interface import Workshop
from hasten.optimize.quantization.integer_weights import inner_products
from hasten.types import EngineOptions

CONTEXT = 512
KEEP_BYTES = 2 << 30
SHARE = 0.5
"""Of the KL of rounding to nearest that the better ways may cost."""
Step = Mapping[str, Any]


class Bench:
    """A model, its original in float32, and texts to make and to judge candidates."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self.options = options
        self.model = load_model(options.model)
        first, second = default_corpus().halves()
        calibration = self._cut(first, options.calibration)
        self._workshop = Workshop(self.model, calibration, directory, _tell, options.seed)
        self._original = Engine(self.model, self._engine_options("f32"))
        self._judge = self._reference(self._cut(second, options.tokens))

    def _cut(self, text: Corpus, tokens: int) -> Windows:
        return cut_windows(text, self.model.tokenizer, tokens=tokens, context=CONTEXT)

    def make(self, *steps: Step) -> tuple[Model, float]:
        """The model after some passes, and how many seconds they took."""
        model, began = self.model, perf_counter()
        for step in steps:
            model = make_pass(step).apply(model, self._workshop)
        return model, perf_counter() - began

    def judge(self, model: Model) -> PairedSamples:
        """What a candidate loses on the evaluation text, token by token."""
        with Engine(model, self._engine_options("carried")) as engine:
            return self._judge.compare(engine)

    def summary(self, samples: PairedSamples) -> Accuracy:
        """Means with their intervals."""
        return summarize(samples, seed=self.options.seed)

    def _engine_options(self, weights: str) -> EngineOptions:
        return engine_options(
            self.model,
            weights=weights,
            threads=self.options.threads,
            max_context=CONTEXT,
            max_sequences=1,
            prefix_cache=False,
            keep_weights=False,
        )

    def _reference(self, windows: Windows) -> Reference:
        size = self.model.config.vocab_size
        return Reference(self._original, windows, vocab_size=size, keep_bytes=KEEP_BYTES)


def measure_methods(bench: Bench) -> dict[str, Any]:
    """Each way to round in one format, with the vocabulary in int8 and in the same format."""
    group = bench.options.group
    base = {"bits": 4, "group": group}
    coarse = {**base, "vocabulary": f"int4:{group}"}
    nearest, awq, gptq = ({"pass": name, **base} for name in ("round", "awq", "gptq"))
    ways: dict[str, Sequence[Step]] = {
        "round to nearest": [nearest],
        "GPTQ": [gptq],
        "AWQ": [awq],
        "AWQ, then GPTQ": [{**awq, "rounds": False}, gptq],
        "round to nearest, searched": [{**nearest, "search": True}],
        "reordered, to nearest": [{"pass": "reorder"}, nearest],
        "reordered, GPTQ": [{"pass": "reorder"}, gptq],
        "GPTQ, columns in order": [{**gptq, "order": False}],
        "round to nearest, vocabulary too": [{**nearest, **coarse}],
        "GPTQ, vocabulary too": [{**gptq, **coarse}],
    }
    found = {}
    for name, steps in ways.items():
        if bench.options.only and not any(word in name for word in bench.options.only):
            continue
        model, seconds = bench.make(*steps)
        found[name] = {
            "passes": list(steps),
            "seconds": seconds,
            "bytes": layer_bytes(model),
            "accuracy": bench.summary(bench.judge(model)).as_dict(),
        }
        report(f"{name}: {json.dumps(found[name])}")
    return {"ways": found, "holds": _holds(found)}


def measure_mixed(bench: Bench) -> dict[str, Any]:
    """Formats by what they cost, against one format for all, on the same tokens."""
    samples, found = {}, dict[str, Any]()
    for name in ("uniform", "mixed"):
        step = json.loads(getattr(bench.options, name))
        model, seconds = bench.make(step)
        samples[name] = bench.judge(model)
        found[name] = {
            "pass": step,
            "seconds": seconds,
            "bytes": layer_bytes(model),
            "formats": formats_by_product(model),
            "accuracy": bench.summary(samples[name]).as_dict(),
        }
        report(f"{name}: {json.dumps(found[name])}")
    less = bench.summary(excess(samples["mixed"], samples["uniform"])).kl
    report(f"KL, mixed less uniform: {less.estimate:.4f} [{less.low:.4f}, {less.high:.4f}]")
    fits = found["mixed"]["bytes"] <= found["uniform"]["bytes"]
    return {**found, "kl_difference": less.as_dict(), "holds": fits and less.high < 0}


def formats_by_product(model: Model) -> dict[str, dict[str, int]]:
    """How many matrices of each kind have which format."""
    found: dict[str, Counter[str]] = {}
    for name in inner_products(model.config):
        layout = model.weights[name].layout()
        form = "float" if layout is None else f"int{layout.bits}:{layout.group}"
        found.setdefault(name.split(".")[-2], Counter())[form] += 1
    return {kind: dict(counts) for kind, counts in found.items()}


def layer_bytes(model: Model) -> int:
    """Bytes of the matrices inside the layers."""
    return sum(model.weights[name].nbytes for name in inner_products(model.config))


def _holds(found: Mapping[str, Any]) -> dict[str, bool]:
    """Which ways lose at most half of what rounding to nearest loses."""
    kl = {name: one["accuracy"]["kl_divergence"]["estimate"] for name, one in found.items()}
    if "round to nearest" not in kl:
        return {}
    return {name: value <= SHARE * kl["round to nearest"] for name, value in kl.items()}


def _tell(what: str, share: float) -> None:
    print(f"\r{share:4.0%} {what:70.70}", end="", file=sys.stderr, flush=True)


PARTS = {"methods": measure_methods, "mixed": measure_mixed}


def main() -> int:
    """Measures and prints; 1 if a part misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=4096, help="that figures are of")
    parser.add_argument("--calibration", type=int, default=2048, help="tokens that passes see")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--only", nargs="*", default=[], help="words in names of ways")
    parser.add_argument("--uniform", default='{"pass": "gptq", "group": 64}', help="JSON of a pass")
    parser.add_argument("--mixed", default='{"pass": "mixed", "bits": 4.5}')
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="directory of finished matrices")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    place = tempfile.TemporaryDirectory() if options.keep is None else nullcontext(options.keep)
    with place as directory:
        bench = Bench(options, Path(directory))
        chosen = {name: lambda _, run=run: run(bench) for name, run in PARTS.items()}
        results = run_parts(chosen, options)
    holds = results.get("methods", {}).get("holds", {})
    kept = [not holds or holds.get("GPTQ") or holds.get("AWQ")]
    kept.append(results.get("mixed", {}).get("holds", True))
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())

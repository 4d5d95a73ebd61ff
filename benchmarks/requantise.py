"""What ways to make weights 4-bit integers cost in accuracy, at equal size.

    python benchmarks/requantise.py [--parts methods mixed] [--model smollm2] [--json FILE]

The original is the model's file dequantised to float32. Candidates run as they would be served: on
the native executor, with int8 activations. Text is `pydoc_data.topics`: calibration sees its first
half, the figures are of its second half. Part "methods" compares rounding to nearest, AWQ and GPTQ
in one format; part "mixed" a mixture of two formats by layer with one format of as many bytes.
With `--keep`, finished matrices stay in a directory, and a run that was ended goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

from parts import report, run_parts

from hasten.generation import Engine, engine_options
from hasten.measure.accuracy import Accuracy, Reference, summarize
from hasten.measure.corpus import Corpus, Windows, cut_windows, default_corpus
from hasten.models import Model, load_model
from hasten.models.weights import DenseTensor
from hasten.optimize.passes import make_pass
from hasten.optimize.passes.interface import Workshop
from hasten.optimize.passes.mixed import mix_models
from hasten.optimize.sensitivity import parts_of
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
        loaded = load_model(options.model)
        self._tokenizer = loaded.tokenizer
        tensors = {
            name: DenseTensor(name, "F32", tensor.to_float32())
            for name, tensor in loaded.weights.items()
        }
        self.model = loaded.derive(tensors)
        first, second = default_corpus().halves()
        calibration = self._cut(first, options.calibration)
        self._workshop = Workshop(self.model, calibration, directory, _tell, options.seed)
        self._original = Engine(self.model, self._engine_options("f32"))
        self._judge = self._reference(self._cut(second, options.tokens))

    def glimpse(self, tokens: int) -> Reference:
        """A judge on the beginning of the calibration text."""
        return self._reference(self._cut(default_corpus().halves()[0], tokens))

    def _cut(self, text: Corpus, tokens: int) -> Windows:
        return cut_windows(text, self._tokenizer, tokens=tokens, context=CONTEXT)

    def make(self, *steps: Step) -> tuple[Model, float]:
        """The model after some passes, and how many seconds they took."""
        model, began = self.model, perf_counter()
        for step in steps:
            model = make_pass(step).apply(model, self._workshop)
        return model, perf_counter() - began

    def judge(self, model: Model, by: Reference | None = None) -> Accuracy:
        """What a candidate loses on the evaluation text, or another."""
        with Engine(model, self._engine_options("carried")) as engine:
            return summarize((by or self._judge).compare(engine), seed=self.options.seed)

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
            "accuracy": bench.judge(model).as_dict(),
        }
        report(f"{name}: {json.dumps(found[name])}")
    return {"ways": found, "holds": _holds(found)}


def measure_mixed(bench: Bench) -> dict[str, Any]:
    """Layers between a coarse and a fine format, by their KL, against one format for all."""
    ends = {}
    for name in ("coarse", "fine", "uniform"):
        step = json.loads(getattr(bench.options, name))
        ends[name], seconds = bench.make(step)
        report(f"{name}: {step} in {seconds:.0f} s, {layer_bytes(ends[name])} bytes")
    coarse, fine, uniform = ends["coarse"], ends["fine"], ends["uniform"]
    glimpse = bench.glimpse(bench.options.sensitivity_tokens)
    layers = [part.name for part in parts_of(coarse.weights) if part.name.startswith("layer ")]
    costs = {}
    for name in layers:
        others = [other for other in layers if other != name]
        costs[name] = bench.judge(mix_models(coarse, fine, others), glimpse).kl.estimate
        report(f"{name} coarse alone: KL {costs[name]:.4f}")
    mixture, kept = coarse, list[str]()
    for name in sorted(layers, key=lambda one: -costs[one]):
        tried = mix_models(coarse, fine, [*kept, name])
        if layer_bytes(tried) > layer_bytes(uniform):
            break
        mixture, kept = tried, [*kept, name]
    figures = {
        name: {"bytes": layer_bytes(model), "accuracy": bench.judge(model).as_dict()}
        for name, model in {"mixed": mixture, **ends}.items()
    }
    return {"layers": costs, "kept": kept, **figures}


def layer_bytes(model: Model) -> int:
    """Bytes of the matrices inside the layers."""
    parts = [part for part in parts_of(model.weights) if part.name.startswith("layer ")]
    names = [name for part in parts for name in part.tensors if name.endswith("proj.weight")]
    return sum(model.weights[name].nbytes for name in names)


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
    """Measures and prints; 1 if no way keeps the goal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=4096, help="that figures are of")
    parser.add_argument("--calibration", type=int, default=2048, help="tokens that passes see")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--only", nargs="*", default=[], help="words in names of ways")
    parser.add_argument("--coarse", default='{"pass": "gptq", "group": 192}', help="JSON of a pass")
    parser.add_argument("--fine", default='{"pass": "gptq", "group": 32}')
    parser.add_argument("--uniform", default='{"pass": "gptq", "group": 64}')
    parser.add_argument("--sensitivity-tokens", type=int, default=512)
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
    return 0 if not holds or holds.get("GPTQ") or holds.get("AWQ") else 1


if __name__ == "__main__":
    sys.exit(main())

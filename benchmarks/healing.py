"""What healing gives back of what removing layers takes.

    python benchmarks/healing.py [--model smollm2] [--remove 5] [--refit 16384] [--written 0]
        [--minutes 5]

Removes the layers of least block influence, corrects the rest by least squares, lets it learn from
the original, and compares all with the original. They learn from the first half of Python's
language reference, the docstrings of the standard library and, with --written, so many tokens that
the original writes on from the former; they are measured on windows of the reference's second half
that share no 50 tokens in a row with any of that (it repeats itself). Prints JSON; the exit status
is 0 if the healed model loses at most half of what the unhealed one loses.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import sysconfig
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter

from hasten.generation import Engine
from hasten.machine import detect_machine
from hasten.measure.accuracy import Accuracy, Reference, summarize
from hasten.measure.corpus import Corpus, Windows, cut_windows, default_corpus
from hasten.measure.interference import between, read_cpu_times
from hasten.measure.overlap import shared_runs
from hasten.models import Model, load_model
from hasten.optimize.distillation.distill import distill
from hasten.optimize.distillation.settings import DistillSettings
from hasten.optimize.distillation.writing import with_written
from hasten.optimize.passes.interface import Workshop
from hasten.optimize.passes.prune_layers import PruneLayers
from hasten.optimize.passes.refit import Refit
from hasten.types import EngineOptions

GOAL = 0.5
"""Most that healing may leave of the loss."""
_CONTEXT = 512
_LEAST_DOCSTRING = 200
_LONG_LINE = 50
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "site-packages", "turtledemo"}


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--remove", type=int, default=5, help="layers, by block influence")
    parser.add_argument("--tokens", type=int, default=2048, help="of text to measure on")
    parser.add_argument("--refit", type=int, default=16384, help="tokens; 0 for none")
    parser.add_argument("--minutes", type=float, default=5.0, help="of learning, about")
    parser.add_argument("--steps", type=int, default=0, help="instead of minutes")
    parser.add_argument("--directory", type=Path, help="keeps the state, to go on from")
    fields = DistillSettings()
    for name in (
        "learning_rate",
        "batch",
        "length",
        "hidden",
        "cross_entropy",
        "warmup",
    ):
        value = getattr(fields, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--written", type=int, default=0, help="tokens that the original writes")
    parser.add_argument("--train", action="append", help="pattern of weights")
    parser.add_argument("--precision", choices=["f32", "bf16"], default=fields.precision)
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    first, second = default_corpus().halves()
    given = learnt = training_windows(model, first, second)
    before = read_cpu_times()
    models = {"unhealed": remove_layers(model, arguments.remove, first)}
    with tempfile.TemporaryDirectory() as temporary:
        directory = arguments.directory or Path(temporary)
        writing = perf_counter()
        if arguments.written:
            written = written_windows(model, first, arguments.written, directory / "written")
            learnt = Windows.of(f"{given.name}, and written", (*given.ids, *written), _CONTEXT)
        evaluation = unseen_windows(model, second, arguments.tokens, learnt)
        started = perf_counter()
        student = models["unhealed"]
        if arguments.refit:
            workshop = Workshop(model, given, directory / "refit", tell, training_text=given)
            student = models["refitted"] = Refit(arguments.refit).apply(student, workshop)
        refitted = perf_counter()
        settings = settings_of(arguments)
        if not arguments.steps:
            settings = fit_time(student, model, learnt, settings, arguments.minutes, temporary)
        learning = perf_counter()
        models["healed"] = distill(student, model, learnt, settings, directory / "state", tell)
        seconds = perf_counter() - learning
        losses = json.loads((directory / "state" / "losses.json").read_text())["losses"]
    found = {name: compare(model, one, evaluation) for name, one in models.items()}
    shared = between(before, read_cpu_times())
    report = {
        "schema": "hasten.healing/1",
        "model": model.name,
        "layers": [model.config.num_layers, student.config.num_layers],
        "written": {"tokens": arguments.written, "seconds": started - writing},
        "refit": {"tokens": arguments.refit, "seconds": refitted - started},
        "settings": asdict(settings),
        "text": {"learnt": learnt.scored, "measured": evaluation.scored},
        "seconds": seconds,
        "seconds_per_step": seconds / settings.steps,
        **{name: accuracy.as_dict() for name, accuracy in found.items()},
        "left": {
            name: left(found["unhealed"], one) for name, one in found.items() if name != "unhealed"
        },
        "losses": losses,
        "machine": detect_machine().as_dict(),
        "interference": None if shared is None else asdict(shared),
    }
    print(json.dumps(report, indent=1))
    return 0 if max(report["left"]["healed"].values()) <= GOAL else 1


def settings_of(arguments: argparse.Namespace) -> DistillSettings:
    """As the command line says."""
    return DistillSettings(
        steps=arguments.steps or 1,
        learning_rate=arguments.learning_rate,
        batch=arguments.batch,
        length=arguments.length,
        hidden=arguments.hidden,
        cross_entropy=arguments.cross_entropy,
        warmup=arguments.warmup,
        precision=arguments.precision,
        train=tuple(arguments.train or ("*",)),
    )


def fit_time(
    student: Model,
    teacher: Model,
    windows: Windows,
    settings: DistillSettings,
    minutes: float,
    directory: str,
) -> DistillSettings:
    """As many steps as a trial of three says that the time holds; a few are left for checks."""
    times: list[float] = []
    trial = replace(settings, steps=3, check_every=1000)
    distill(
        student,
        teacher,
        windows,
        trial,
        Path(directory) / "trial",
        lambda *_: times.append(perf_counter()),
    )
    # The last of them measures the held-out loss, too.
    step = times[2] - times[1]
    checks = times[3] - times[2] - step
    room = 60 * minutes - 2 * checks
    steps = max(1, int(room / (step + checks / settings.check_every)))
    print(f"{step:.1f} s a step, {steps} steps", file=sys.stderr)
    return replace(settings, steps=steps)


def training_windows(model: Model, first: Corpus, second: Corpus) -> Windows:
    """The language reference's first half, then docstrings without a line of the second half."""
    known = {line.strip() for line in second.text.splitlines() if len(line) > _LONG_LINE}
    kept = [text for text in docstrings() if not known & {x.strip() for x in text.splitlines()}]
    text = first.text + "\n\n" + "\n\n".join(kept)
    corpus = Corpus("language reference, first half, and docstrings", text)
    return cut_windows(corpus, model.tokenizer, tokens=1 << 22, context=_CONTEXT)


def written_windows(
    model: Model, text: Corpus, tokens: int, directory: Path
) -> tuple[tuple[int, ...], ...]:
    """What the model writes on from places of a text."""
    given = cut_windows(text, model.tokenizer, tokens=1 << 22, context=_CONTEXT)
    found = with_written(given, model, tokens, directory, tell, seed=0)
    return found.ids[len(given.ids) :]


def unseen_windows(model: Model, text: Corpus, tokens: int, seen: Windows) -> Windows:
    """The text's first windows, less those that share a long run with what was seen."""
    windows = cut_windows(text, model.tokenizer, tokens=tokens, context=_CONTEXT)
    shared = set(shared_runs(seen.ids, windows.ids))
    unseen = [ids for place, ids in enumerate(windows.ids) if place not in shared]
    return Windows.of(windows.name, unseen, _CONTEXT)


def docstrings() -> list[str]:
    """The longer docstrings of the standard library, by file and line."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(library.rglob("*.py")):
        if _LEFT_OUT & set(path.relative_to(library).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text is not None and len(text) >= _LEAST_DOCSTRING:
                    found.append(text)
    return found


def remove_layers(model: Model, count: int, text: Corpus) -> Model:
    """The model without its layers of least influence."""
    windows = cut_windows(text, model.tokenizer, tokens=1024, context=_CONTEXT)
    workshop = Workshop(model, windows, Path("unused"), tell)
    return PruneLayers(count).apply(model, workshop)


def compare(original: Model, candidate: Model, windows: Windows) -> Accuracy:
    """The candidate beside the original, both in float32."""
    options = EngineOptions(
        weights="f32", kv="f32", max_context=_CONTEXT, max_sequences=1, keep_weights=False
    )
    with Engine(original, options) as reference, Engine(candidate, options) as engine:
        scores = Reference(reference, windows, vocab_size=original.config.vocab_size)
        return summarize(scores.compare(engine), seed=0)


def left(unhealed: Accuracy, healed: Accuracy) -> dict[str, float]:
    """Share of each loss that healing leaves."""
    return {
        "kl_divergence": healed.kl.estimate / unhealed.kl.estimate,
        "top1_disagreement": (1 - healed.top1_agreement.estimate)
        / (1 - unhealed.top1_agreement.estimate),
    }


def tell(what: str, _share: float) -> None:
    """Progress on standard error."""
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

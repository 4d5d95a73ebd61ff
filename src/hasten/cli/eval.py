"""`hasten eval`: how far a model, as it would run, is from its reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.console import print_table, progress, remark, write_json
from hasten.cli.eval_tasks import (
    ItemChoice,
    answer_both,
    show_items,
    task_document,
    write_flips,
)
from hasten.cli.options import (
    EngineChoice,
    engine_choice,
    json_option,
    model_argument,
    output_option,
    seed_option,
)
from hasten.errors import HastenError, UsageError
from hasten.types import EngineOptions

if TYPE_CHECKING:
    from hasten.measure.accuracy import Accuracy
    from hasten.measure.corpus import Windows
    from hasten.models import Model

__all__ = ["command"]

SCHEMA = "hasten.eval/1"


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "hasten eval smollm2                     what int4 and int8 cost, against float32\n"
    "hasten eval fast-model                  an artefact against the model it was made of\n"
    "hasten eval smollm2 --weights int4:64 --text novel.txt --tokens 16384\n"
    "hasten eval fast-model --task questions.jsonl --flips flips.jsonl\n"
    "hasten eval fast-model --task questions.jsonl --score judge.py:is_right\n\n"
    'A line of a --task file: {"prompt": "2 + 2 = ?", "answer": "4"}, or with "choices" and the '
    'right one as "answer", or with a regular expression as "pattern"; see docs/accuracy.md.'
)
@model_argument
@click.option(
    "--against",
    metavar="REFERENCE",
    help="Model to compare with, in float32  [default: MODEL, or what an artefact was made of]",
)
@click.option(
    "--text", type=click.Path(path_type=Path), help="UTF-8 text  [default: Python's docs]"
)
@click.option(
    "--tokens",
    type=click.IntRange(128, 2**24),
    default=4096,
    show_default=True,
    help="Tokens of the text to take.",
)
@click.option(
    "--context",
    type=click.IntRange(2, 2**20),
    help="Tokens a window; each is scored on its own  [default: 512, or the model's limit]",
)
@click.option(
    "--task",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Labelled items as JSON Lines: measure right answers instead of text.",
)
@click.option(
    "--score",
    metavar="FUNCTION",
    help="module:function or file.py:function, run to score (prompt, output, expected).",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 2**16),
    default=256,
    show_default=True,
    help="Longest answer to an item that does not say.",
)
@output_option("--flips", "Write the items whose score changed as JSON Lines.")
@seed_option("Of the bootstrap.", default=0)
@engine_choice
@json_option
def command(
    model: str,
    against: str | None,
    text: Path | None,
    tokens: int,
    context: int | None,
    task: Path | None,
    score: str | None,
    max_tokens: int,
    flips: Path | None,
    seed: int,
    engine: EngineChoice,
    json_path: str | None,
) -> None:
    """Measure perplexity, KL divergence and top-1 agreement of MODEL against a reference.

    Both score the same tokens; every figure comes with a 95 % interval. With --task both answer the
    same items on the path that serves users, and what is counted is right answers.
    """
    from hasten.models import load_model

    if task is None and (score is not None or flips is not None):
        raise click.UsageError("--score and --flips need --task.")
    if task is not None and text is not None:
        raise click.UsageError("--task and --text are measured one at a time.")
    candidate = load_model(model)
    reference = _reference(candidate, against)
    if task is None:
        report = _on_text(candidate, reference, engine, text, tokens, context, seed, json_path)
    else:
        choice = ItemChoice(task, score, max_tokens, flips)
        report = _on_items(candidate, reference, engine, choice, seed, json_path)
    if json_path is not None:
        write_json(report, json_path)


def _on_items(
    candidate: Model,
    reference: Model,
    engine: EngineChoice,
    choice: ItemChoice,
    seed: int,
    json_path: str | None,
) -> dict[str, Any]:
    """Answers labelled items with both models, shows what came of it and gives the report."""
    options = engine.for_model(candidate)
    both = (options, _exact(options))
    found, tasks, formats = answer_both(candidate, reference, both, choice, seed)
    report = {
        **_head(candidate, reference, options, formats),
        **task_document(tasks, found, choice),
        **_tail(seed),
    }
    if json_path != "-":
        show_items(_title(report), found)
    if choice.flips is not None:
        write_flips(found, choice.flips)
    return report


def _on_text(
    candidate: Model,
    reference: Model,
    engine: EngineChoice,
    text: Path | None,
    tokens: int,
    context: int | None,
    seed: int,
    json_path: str | None,
) -> dict[str, Any]:
    """Scores a text with both models, shows what came of it and gives the report."""
    from hasten.measure.corpus import cut_windows, default_corpus, read_corpus

    corpus = default_corpus().halves()[1] if text is None else read_corpus(text)
    context = context or min(512, candidate.config.max_position)
    windows = cut_windows(corpus, candidate.tokenizer, tokens=tokens, context=context)
    if reference is not candidate:
        own = cut_windows(corpus, reference.tokenizer, tokens=tokens, context=context)
        if own.digest != windows.digest:
            raise UsageError(
                f"{candidate.name} and {reference.name} split the text into different tokens",
                do="compare models with the same tokenizer",
            )
    if windows.scored < tokens * 0.9:
        remark(f"{corpus.name} holds only {windows.scored} tokens to score")
    longest = max(len(window) for window in windows.ids)
    options = engine.for_model(candidate)
    options = replace(options, max_context=options.max_context or longest, max_sequences=1)
    accuracy, formats = _measure(candidate, reference, options, windows, seed)
    report = {
        **_head(candidate, reference, options, formats),
        **_text_document(windows, accuracy),
        **_tail(seed),
    }
    if json_path != "-":
        _show(report, accuracy)
    return report


def _reference(candidate: Model, against: str | None) -> Model:
    """The model to compare with; an artefact is compared with what it was made of."""
    from hasten.models import load_model

    if against is not None:
        return load_model(against)
    if candidate.recipe is None:
        return candidate
    source = candidate.recipe.get("source", {})
    path = source.get("path") if isinstance(source, dict) else None
    if not isinstance(path, str):
        raise UsageError(
            f"the recipe of {candidate.name} does not say what it was made of",
            do="name the reference with --against",
        )
    try:
        reference = load_model(path)
    except HastenError as error:
        raise UsageError(
            f"cannot open {path}, of which {candidate.name} was made: {error.what}",
            do="name the reference with --against",
        ) from error
    if reference.digest() != source.get("digest"):
        raise UsageError(
            f"{path} has changed since {candidate.name} was made of it",
            do="name the reference with --against",
        )
    return reference


def _measure(
    candidate: Model, reference: Model, options: EngineOptions, windows: Windows, seed: int
) -> tuple[Accuracy, dict[str, str]]:
    """The accuracy, and the format that each tensor of the candidate ran in."""
    from hasten.generation import Engine
    from hasten.measure.accuracy import Reference, summarize

    with (
        Engine(candidate, options) as engine,
        Engine(reference, _exact(options)) as original,
        progress("scoring tokens", windows.scored) as set_done,
    ):
        done = 0

        def advance(tokens: int) -> None:
            nonlocal done
            done += tokens
            set_done(done)

        scores = Reference(original, windows, vocab_size=reference.config.vocab_size)
        samples = scores.compare(engine, advance)
        return summarize(samples, seed=seed), dict(engine.formats)


def _exact(options: EngineOptions) -> EngineOptions:
    """How the reference runs beside a model with these options: in float32."""
    return EngineOptions(
        weights="f32",
        kv="f32",
        threads=options.threads,
        max_context=options.max_context,
        max_sequences=options.max_sequences,
        keep_weights=False,
    )


def _head(
    candidate: Model, reference: Model, options: EngineOptions, formats: dict[str, str]
) -> dict[str, Any]:
    from collections import Counter

    return {
        "schema": SCHEMA,
        "model": {
            "name": candidate.name,
            "path": str(candidate.path),
            "weights": options.weights,
            "kv": options.kv,
            "executor": options.executor,
            "tensors_by_format": dict(Counter(formats.values())),
        },
        "reference": {
            "name": reference.name,
            "path": str(reference.path),
            "weights": "f32",
            "kv": "f32",
        },
    }


def _text_document(windows: Windows, accuracy: Accuracy) -> dict[str, Any]:
    from hasten.measure.accuracy import ACCURACY_FORMULAS

    return {
        "text": {
            "name": windows.name,
            "digest": windows.digest,
            "windows": len(windows.ids),
            "context": windows.context,
            "tokens": windows.scored,
        },
        "accuracy": accuracy.as_dict(),
        "formulas": ACCURACY_FORMULAS,
    }


def _tail(seed: int) -> dict[str, Any]:
    from hasten.machine import detect_machine

    return {"seed": seed, "machine": detect_machine().as_dict()}


def _title(report: dict[str, Any]) -> str:
    model = report["model"]
    return (
        f"{model['name']} ({model['weights']}, KV {model['kv']}) against"
        f" {report['reference']['name']} in float32"
    )


def _show(report: dict[str, Any], accuracy: Accuracy) -> None:
    text = report["text"]
    figures = [
        ("perplexity of the reference", accuracy.reference_perplexity, ".3f", 1),
        ("perplexity", accuracy.perplexity, ".3f", 1),
        ("perplexity ratio", accuracy.perplexity_ratio, ".4f", 1),
        ("KL divergence, nats a token", accuracy.kl, ".4f", 1),
        ("top-1 agreement, %", accuracy.top1_agreement, ".2f", 100),
    ]
    print_table(
        ["", "figure", "95 % from", "to"],
        [
            [name, *(f"{end * factor:{form}}" for end in (one.estimate, one.low, one.high))]
            for name, one, form, factor in figures
        ],
        title=_title(report),
    )
    click.echo(
        f"\n{text['tokens']} tokens of {text['name']} in windows of {text['context']};"
        " intervals: block bootstrap, 64 tokens a block"
    )
    for name in ("perplexity", "kl_divergence", "top1_agreement"):
        click.echo(f"{name} = {report['formulas'][name]}")

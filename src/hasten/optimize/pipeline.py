"""From a model to its artefact: prepare, search, stage, check, publish."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from hasten import __version__
from hasten.errors import CapacityError, UsageError
from hasten.generation import Engine, engine_options
from hasten.generation.native import rival_isas
from hasten.machine import detect_machine, memory_limit
from hasten.measure.corpus import Corpus, cut_windows
from hasten.measure.synthetic import cut_prompts
from hasten.measure.tasks.reading import read_tasks
from hasten.measure.tasks.scoring import load_function
from hasten.models import Model, load_model
from hasten.optimize.apart import check_data_apart
from hasten.optimize.candidates import (
    FORMATS,
    QUICK_FORMATS,
    Candidate,
    matrix_shapes,
    uniform_candidates,
    vocabulary_candidates,
    vocabulary_matrices,
)
from hasten.optimize.gate import Budget
from hasten.optimize.journal import Journal, JournaledLaboratory
from hasten.optimize.laboratory import EngineLaboratory, Material, TaskMaterial
from hasten.optimize.objective import Objective
from hasten.optimize.proposals import default_passes
from hasten.optimize.publish import (
    artefact_settings,
    check_same,
    fresh_process_peak,
    publish,
    staged,
)
from hasten.optimize.recipe import Evidence
from hasten.optimize.search import Search
from hasten.optimize.search_plan import SearchPlan
from hasten.optimize.speed import Effort, RequestShape
from hasten.optimize.stages import Progress
from hasten.optimize.training import training_curves
from hasten.optimize.training_text import cut_training_text
from hasten.optimize.trial import Trial
from hasten.optimize.variants import Variants

__all__ = ["optimize", "prepare_material", "prepare_plan", "prepare_tasks", "workspace_of"]

_CONTEXT = 512
_EVALUATION_TOKENS = 4096
_CALIBRATION_TOKENS = {False: 2048, True: 512}
_PROMPTS = 8
_ITEM_CONTEXT = 2048
_MOST_FOR_ORIGINAL = 0.7  # of the memory; candidates and kept logits need the rest


def prepare_tasks(path: Path, function: str | None) -> TaskMaterial:
    """Reads labelled items: half of them for the search, half for the proof.

    Args:
        path: JSON Lines; see `hasten.measure.tasks.reading`.
        function: Name of a function that scores, or None.

    Raises:
        UsageError: The file or the function cannot be used, or a half has no item.
    """
    score = None if function is None else load_function(function)
    tasks = read_tasks(path, custom=score is not None)
    search, proof = tasks.halves()
    if not search.tasks or not proof.tasks:
        raise UsageError(
            f"{tasks.name} has {len(tasks.tasks)} items, too few for a search and a proof",
            do="give more items, a hundred or so",
        )
    return TaskMaterial(search, proof, score)


def prepare_material(
    model: Model,
    corpus: Corpus,
    shape: RequestShape,
    *,
    tokens: int | None,
    quick: bool,
    seed: int,
    tasks: TaskMaterial | None = None,
    train: bool = False,
) -> Material:
    """Cuts texts and prompts: the search sees the first half of the corpus, the proof the second.

    Args:
        model: Whose tokenizer cuts them.
        corpus: Running text.
        shape: The timed requests.
        tokens: Tokens of the proof, None for 4096.
        quick: Smaller samples.
        seed: Chooses the prompts.
        tasks: Labelled items, if there are some.
        train: Passes that train will be tried.

    Raises:
        CapacityError: The request does not fit the model's context.
        UsageError: The text is too short, or the halves of text or items share runs of tokens.
    """
    longest = model.config.max_position
    if shape.input_tokens + shape.output_tokens > longest:
        raise CapacityError(
            f"a request of {shape} does not fit the model's context of {longest}",
            do="give a smaller --input-len or --output-len",
        )
    first, second = corpus.halves()
    context = min(_CONTEXT, longest)
    wanted = _EVALUATION_TOKENS if tokens is None else tokens
    count = shape.concurrent + max(_PROMPTS, 2 * shape.concurrent)
    own = [shape.input_tokens - shape.shared] * count
    tails = cut_prompts(model.tokenizer, first, own, seed=seed)
    head = cut_prompts(model.tokenizer, first, [max(shape.shared, 1)], seed=seed + 1)[0]
    prompts = [(*head[: shape.shared], *tail) for tail in tails]
    few = _CALIBRATION_TOKENS[quick]
    calibration = cut_windows(first, model.tokenizer, tokens=few, context=context)
    evaluation = cut_windows(second, model.tokenizer, tokens=wanted, context=context)
    items = ((), ()) if tasks is None else ((tasks.search,), (tasks.proof,))
    check_data_apart(model, (calibration, *items[0]), (evaluation, *items[1]))
    return Material(
        calibration=calibration,
        evaluation=evaluation,
        prompts=tuple(prompts),
        shape=shape,
        tasks=tasks,
        training_text=cut_training_text(model, first, evaluation) if train else None,
    )


def prepare_plan(
    model: Model,
    objective: Objective,
    *,
    threads: int,
    formats: Sequence[str] = (),
    asked: Sequence[Candidate] = (),
    quick: bool,
    seed: int,
) -> SearchPlan:
    """What to try, and how long to measure.

    Args:
        model: The original.
        objective: What is timed, and the bounds to keep.
        threads: Threads of the original and of most candidates.
        formats: Weight formats to try; empty for the usual ones.
        asked: Candidates with passes that the user asks for.
        quick: Fewer candidates and rounds, no mixed precision.
        seed: Of intervals and orders.
    """
    usual = QUICK_FORMATS if quick else FORMATS
    candidates = uniform_candidates(threads, formats or usual)
    if not formats:
        names = vocabulary_matrices(matrix_shapes(model.weights), model.config.vocab_size)
        candidates += vocabulary_candidates(threads, ["carried"], names)
    if quick:
        return SearchPlan(
            threads,
            tuple(candidates),
            objective,
            asked=tuple(asked),
            probe=Effort(rounds=2, least=2, seconds=10),
            final=Effort(rounds=4, least=2, seconds=15, blocks=2),
            finalists=2,
            mixed_seconds=0,
            tail_seconds=60,
            seed=seed,
        )
    changed = () if formats else default_passes(model, threads)
    return SearchPlan(
        threads,
        tuple(candidates),
        objective,
        changed=tuple(changed),
        asked=tuple(asked),
        isas=tuple(rival_isas()),
        seed=seed,
    )


def optimize(
    model: Model,
    output: Path,
    *,
    budget: Budget,
    material: Material,
    plan: SearchPlan,
    progress: Progress,
    stopped: Callable[[Search], None],
    arguments: Sequence[str] = (),
) -> dict[str, Any]:
    """Searches and writes the artefact; nothing appears at `output` before it is complete.

    Args:
        model: The original.
        output: Directory of the artefact.
        budget: What may be lost.
        material: What candidates are measured on.
        plan: What to try.
        progress: Told what is being done.
        stopped: Told of the search if Ctrl-C ends it; the KeyboardInterrupt goes on.
        arguments: The command line after `hasten`, for the recipe.

    Returns:
        The recipe.
    """
    limit = memory_limit()
    _check_memory(model, limit)
    request = material.shape.input_tokens + material.shape.output_tokens
    longest = material.evaluation.context
    if material.tasks is not None:
        # Items may be longer than the text's windows; what does not fit the model is refused there.
        longest = max(longest, _ITEM_CONTEXT)
    context = min(max(request, longest), model.config.max_position)
    workspace = workspace_of(output)
    workspace.mkdir(parents=True, exist_ok=True)
    journal = Journal(workspace / "journal.jsonl", _identity(model, budget, material, plan))
    variants = Variants(
        model,
        material.calibration,
        workspace / journal.name,
        lambda doing, share: search.tell_pass(doing, share),  # noqa: PLW0108 - `search` is made later
        seed=plan.seed,
        training_text=material.training_text,
    )
    laboratory = EngineLaboratory(
        variants.model,
        context=context,
        material=material,
        threads=plan.threads,
        memory_limit=limit,
        seed=plan.seed,
    )
    progress("opening the original in float32", 0.0)
    with laboratory, closing(journal):
        search = Search(JournaledLaboratory(laboratory, journal), budget, plan, progress)
        try:
            winner = search.run()
            progress("writing the artefact", 1.0)
            changed = variants.model(winner.candidate.steps)
            with staged(changed, winner.candidate, output) as place:
                _verify(place, laboratory, winner, context)
                evidence = Evidence(
                    model=model,
                    winner=winner,
                    original=search.original,
                    trials=search.trials,
                    remarks=[*search.remarks, *laboratory.remarks],
                    budget=budget,
                    objective=plan.objective,
                    material=material,
                    machine=detect_machine(),
                    memory=_memory(place, model, laboratory, search.original, winner),
                    seed=plan.seed,
                    seconds=journal.seconds(),
                    arguments=arguments,
                    training=training_curves(
                        [one.candidate.steps for one in (search.original, *search.trials)], variants
                    ),
                )
                recipe = publish(place, output, evidence, str(output))
        except KeyboardInterrupt:
            stopped(search)
            raise
    shutil.rmtree(workspace, ignore_errors=True)
    return recipe


def workspace_of(output: Path) -> Path:
    """Where a search keeps what it has measured and made until its artefact is there."""
    return output.absolute().parent / f".{output.name}.search"


def _identity(model: Model, budget: Budget, material: Material, plan: SearchPlan) -> dict[str, Any]:
    """What decides about the measurements of a search: with the same, they can be taken over."""
    machine = detect_machine()
    return {
        "hasten": __version__,
        "model": model.digest(),
        "texts": [material.calibration.digest, material.evaluation.digest],
        "items": None if material.tasks is None else material.tasks.search.digest,
        "prompts": hashlib.sha256(repr(material.prompts).encode()).hexdigest(),
        "budget": budget.as_dict(),
        "plan": repr(plan),
        "machine": [machine.cpu, machine.cores],
    }


def _verify(place: Path, laboratory: EngineLaboratory, winner: Trial, context: int) -> None:
    """Runs the staged artefact as users will, and holds its logits to the winner's."""
    with laboratory.open(winner.candidate) as measured:
        expected = laboratory.answers(measured)
    artefact = load_model(str(place))
    options = engine_options(artefact, max_context=context, max_sequences=1, keep_weights=False)
    with Engine(artefact, options) as engine:
        check_same(expected, laboratory.answers(engine))


def _memory(
    place: Path, model: Model, laboratory: EngineLaboratory, original: Trial, winner: Trial
) -> dict[str, dict[str, int]]:
    """What engines hold, and the peak of fresh processes, of the original and of the artefact."""
    runs = {
        "before": (original.candidate, model.path, original.candidate.settings()),
        "after": (winner.candidate, place, artefact_settings(winner.candidate)),
    }
    found = {}
    for name, (candidate, path, settings) in runs.items():
        found[name] = dict(laboratory.memory(candidate))
        peak = fresh_process_peak(path, settings, laboratory.shape)
        if peak is not None:
            found[name]["peak_rss"] = peak
    return found


def _check_memory(model: Model, limit: int) -> None:
    shapes = matrix_shapes(model.weights).values()
    needed = 4 * sum(rows * columns for rows, columns in shapes)
    if needed > limit * _MOST_FOR_ORIGINAL:
        raise CapacityError(
            f"{model.name} in float32, to compare with, takes {needed / 2**30:.1f} GiB and this"
            f" process may use {limit / 2**30:.1f} GiB",
            do="optimise it on a machine with more memory; the artefact may run here",
        )

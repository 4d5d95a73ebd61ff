"""Distillation: a student learns to predict what its teacher predicts.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network",
https://arxiv.org/abs/1503.02531. The teacher may have any shape with the same vocabulary; a student
that was made of it by removing layers heals so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from hasten.errors import CapacityError, UnsupportedModelError, UsageError
from hasten.generation.torch_graph import device_of, run_on_threads
from hasten.machine import available_cores, memory_limit
from hasten.measure.corpus import Windows
from hasten.models import Model, architectures
from hasten.models.config import ModelConfig
from hasten.models.ops import Attention, KvWrite
from hasten.models.weights import DenseTensor
from hasten.optimize.distillation.data import Lessons, cut_lessons
from hasten.optimize.distillation.loss import LOGIT_BYTES
from hasten.optimize.distillation.memory import kept_memory
from hasten.optimize.distillation.settings import DistillSettings
from hasten.optimize.distillation.state import StateFile, fingerprint
from hasten.optimize.distillation.train import Trainer, trained_names
from hasten.optimize.distillation.writing import with_written

__all__ = ["distill"]

_SAVE_SECONDS = 120.0


def distill(
    student: Model,
    teacher: Model,
    windows: Windows,
    settings: DistillSettings,
    directory: Path,
    progress: Callable[[str, float], None],
    *,
    seed: int = 0,
    save_seconds: float = _SAVE_SECONDS,
    device: str | None = None,
) -> Model:
    """Trains a student, or goes on where an earlier call with the same arguments was stopped.

    On a processor the result has the same bits however often it was stopped.

    Args:
        student: Where to begin.
        teacher: Whom to follow.
        windows: Text; a part of it only measures.
        settings: How.
        directory: Keeps the state, and the losses as ``losses.json``: `steps`, the loss of each and
            the held-out loss where it was measured.
        progress: Told the step, the losses and the time left, and the share that is done.
        seed: Of the order of the windows.
        save_seconds: At least so much time is between two savings of the state.
        device: As torch names it; None for CUDA where it is found, else the processor.

    Returns:
        The student with the best held-out weights; those that were not trained as they were.

    Raises:
        UsageError: The models do not belong together, or the text or the settings do not fit.
        UnsupportedModelError: A model has no logits to learn.
        CapacityError: It does not fit into the memory.
        HastenError: The loss is no longer finite.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    _check_models(student, teacher)
    if settings.written:
        windows = with_written(
            windows, teacher, settings.written, directory / "written", progress, seed=seed
        )
    lessons = cut_lessons(windows, length=settings.length, held_out=settings.held_out, seed=seed)
    _check_lessons(lessons, student, teacher)
    place = device_of(device)
    _check_memory(student, teacher, settings, lessons.length, place)
    store = StateFile(directory, fingerprint(student, teacher, windows, settings, seed))
    with run_on_threads(available_cores()), kept_memory():
        state = store.read()
        if state is None or state.step < settings.steps:
            trainer = Trainer(student, teacher, lessons, settings, place)
            if state is not None:
                trainer.restore(state)
            _train(trainer, store, progress, save_seconds)
            state = trainer.finish()
            store.write(state)
        return _result(student, state.tensors["best"], settings)


def _train(
    trainer: Trainer,
    store: StateFile,
    progress: Callable[[str, float], None],
    save_seconds: float,
) -> None:
    began = saved = monotonic()
    first, steps = trainer.step, trainer.settings.steps
    try:
        while True:
            if trainer.unexamined:
                trainer.examine()
            done = trainer.step - first
            left = (monotonic() - began) / done * (steps - trainer.step) if done else None
            progress(trainer.describe(left), trainer.step / steps)
            if trainer.step == steps:
                return
            trainer.advance()
            if monotonic() - saved >= save_seconds:
                store.write(trainer.state())
                saved = monotonic()
    except KeyboardInterrupt:
        store.write(trainer.state())
        raise


def _result(student: Model, best: Mapping[str, Tensor], settings: DistillSettings) -> Model:
    weights = dict(student.weights)
    for name, values in best.items():
        if settings.result == "bf16":
            bits = values.cpu().to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
            weights[name] = DenseTensor(name, "BF16", bits)
        else:
            weights[name] = DenseTensor(name, "F32", values.cpu().numpy())
    return student.derive(weights)


def _check_models(student: Model, teacher: Model) -> None:
    for model in (student, teacher):
        if model.config.encoder is not None or model.config.output != "logits":
            raise UnsupportedModelError(
                f"{model.name} has no logits to learn from", allowed="decoders with a vocabulary"
            )
    sizes = [model.config.vocab_size for model in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"the student has a vocabulary of {sizes[0]} tokens and the teacher one of {sizes[1]}",
            do="give models with the same tokenizer",
        )


def _check_lessons(lessons: Lessons, *models: Model) -> None:
    longest = min(model.config.longest for model in models)
    if lessons.length > longest:
        raise UsageError(
            f"windows of {lessons.length} tokens", allowed=f"up to {longest}, the model's longest"
        )
    if lessons.largest >= models[0].config.vocab_size:
        raise UsageError(
            f"the text holds token {lessons.largest}",
            allowed=f"below {models[0].config.vocab_size}, the size of the vocabulary",
        )


def _check_memory(
    student: Model, teacher: Model, settings: DistillSettings, length: int, device: torch.device
) -> None:
    """Refuses what does not fit, before any of it is allocated."""
    sizes = {name: int(np.prod(tensor.shape)) for name, tensor in student.weights.items()}
    trained = sum(sizes[name] for name in trained_names(student, settings))
    held = sum(sizes.values()) + sum(int(np.prod(one.shape)) for one in teacher.weights.values())
    # Gradients, two moments and the best weights, beside the weights themselves.
    floats = held + 4 * trained + settings.batch * _activations(student.config, length)
    needed = 4 * floats + LOGIT_BYTES
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_limit()
    if needed > free:
        raise CapacityError(
            f"distillation takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are there",
            do="choose a smaller batch with more accumulate, a smaller length, or train fewer"
            " weights",
        )


def _activations(config: ModelConfig, length: int) -> int:
    """Values that one window leaves for the way back, counted generously."""
    total = 0
    for op in architectures.build(config).ops:
        total += 2 * length * (0 if isinstance(op, KvWrite) else op.width)
        if isinstance(op, Attention) and (op.cap is not None or op.window is not None):
            total += 4 * op.heads * length * length
    return total

"""One student on its way: weights, optimiser, losses; forward and back for each step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.errors import HastenError, UsageError
from hasten.generation.kvcache import DEFAULT_CONTEXT
from hasten.generation.torch_graph import Decoder, weight_tensors
from hasten.models import Model, architectures
from hasten.optimize.distillation.data import Lessons
from hasten.optimize.distillation.loss import (
    NO_TARGET,
    LogitLoss,
    Network,
    learn_by_rows,
    loss_by_rows,
)
from hasten.optimize.distillation.settings import DistillSettings
from hasten.optimize.distillation.state import Loss, State
from hasten.optimize.pruning.structure import corresponding_layers, residual_stream

__all__ = ["Trainer", "trained_names"]

_TINY = 1e-12


class Trainer:
    """The student's weights, its optimiser, and what both went through."""

    def __init__(
        self,
        student: Model,
        teacher: Model,
        lessons: Lessons,
        settings: DistillSettings,
        device: torch.device,
    ) -> None:
        self.settings = settings
        self.step = 0
        self._device = device
        self._lessons = lessons
        self._loss = LogitLoss(settings.temperature, settings.cross_entropy)
        self._losses: list[Loss] = []
        self._best_loss = float("inf")
        self._best: dict[str, Tensor] = {}
        precision = settings.precision
        ours, theirs = (
            Decoder(one.config, _context(one, lessons), device, precision=precision)
            for one in (student, teacher)
        )
        names = trained_names(student, settings)
        weights = weight_tensors(student, device)
        self._trained = {name: weights[name].requires_grad_(True) for name in names}
        fixed = {name: one for name, one in weights.items() if name not in self._trained}
        self._student = Network(ours, ours.narrow(fixed) | self._trained)
        self._teacher = Network(theirs, theirs.narrow(weight_tensors(teacher, device)))
        self._states = _state_names(student, teacher, settings) if settings.hidden else ((), ())
        for one in self._trained.values():
            one.grad = torch.zeros_like(one)
        self._optimiser = _optimiser(self._trained, settings)
        tokens = self._on_device(lessons.held_out)
        self._held_out = (tokens, _last_states(self._teacher, tokens))

    @property
    def unexamined(self) -> bool:
        """Whether the held-out loss is to be measured before the next step."""
        due = self.step % self.settings.check_every == 0 or self.step == self.settings.steps
        return due and (not self._losses or self._losses[-1].held_out is None)

    def examine(self) -> None:
        """Measures the held-out loss, and keeps the weights if none were better."""
        tokens, theirs = self._held_out
        hidden = (_last_states(self._student, tokens), theirs)
        value = loss_by_rows(self._loss, self._student, self._teacher, hidden, _targets(tokens))
        if not np.isfinite(value):
            raise HastenError(
                f"the held-out loss after step {self.step} is {value}",
                do="choose a smaller learning_rate, or another student",
            )
        with _uninterrupted():
            if self._losses:
                last = self._losses.pop()
                self._losses.append(Loss(self.step, last.loss, value))
            else:
                self._losses.append(Loss(0, None, value))
            if value < self._best_loss:
                self._best_loss = value
                self._best = {name: one.detach().clone() for name, one in self._trained.items()}

    def advance(self) -> None:
        """One step of the optimiser."""
        settings = self.settings
        loss = 0.0
        # Kept rather than freed: new pages cost more than the zeros.
        self._optimiser.zero_grad(set_to_none=False)
        for part in range(settings.accumulate):
            number = self.step * settings.accumulate + part
            tokens = self._on_device(self._lessons.batch(number, settings.batch))
            with self._student.decoder.products():
                loss += self._learn(tokens) / settings.accumulate
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), settings.clip)
        if not (np.isfinite(loss) and bool(torch.isfinite(norm))):
            raise HastenError(
                f"the loss of step {self.step + 1} is {loss}",
                do="choose a smaller learning_rate, or precision f32",
            )
        for group in self._optimiser.param_groups:
            group["lr"] = settings.rate(self.step)
        with _uninterrupted():
            self._optimiser.step()
            self.step += 1
            self._losses.append(Loss(self.step, loss, None))

    def _learn(self, tokens: Tensor) -> float:
        """Adds the gradients of one pass, and gives its loss."""
        settings, weight = self.settings, 1 / self.settings.accumulate
        ours, theirs = self._states
        with torch.no_grad():
            target, shown = self._teacher.body(tokens, theirs)
        hidden, states = self._student.body(tokens, ours)
        loss, gradient = learn_by_rows(
            self._loss, self._student, self._teacher, (hidden, target), _targets(tokens), weight
        )
        outputs, gradients = [hidden], [gradient]
        if settings.hidden:
            far = _distance([states[a] for a in ours], [shown[b] for b in theirs])
            loss += settings.hidden * far.item()
            outputs.append(far * settings.hidden * weight)
            gradients.append(torch.ones_like(outputs[1]))
        if hidden.requires_grad:
            torch.autograd.backward(outputs, gradients)
        return loss

    def describe(self, seconds_left: float | None) -> str:
        """The step, the last losses and the time left, in a line."""
        parts = [f"step {self.step} of {self.settings.steps}"]
        if self._losses[-1].loss is not None:
            parts.append(f"loss {self._losses[-1].loss:.4f}")
        measured = [one.held_out for one in self._losses if one.held_out is not None]
        if measured:
            parts.append(f"held out {measured[-1]:.4f}")
        if seconds_left is not None:
            parts.append(
                f"{seconds_left / 60:.0f} min left"
                if seconds_left >= 90
                else f"{seconds_left:.0f} s left"
            )
        return ", ".join(parts)

    def state(self) -> State:
        """What to save."""
        moments = {name: self._optimiser.state.get(one, {}) for name, one in self._trained.items()}
        kinds = {"mean": "exp_avg", "square": "exp_avg_sq"}
        tensors = {
            kind: {name: one[key] for name, one in moments.items() if key in one}
            for kind, key in kinds.items()
        }
        tensors |= {"weights": self._trained, "best": self._best}
        return State(self.step, list(self._losses), self._best_loss, tensors)

    def finish(self) -> State:
        """What is left to save when all steps are done."""
        return State(self.step, self._losses, self._best_loss, {"best": self._best})

    def restore(self, state: State) -> None:
        """Goes on from what was saved."""
        self.step, self._losses, self._best_loss = state.step, list(state.losses), state.best
        self._best = {
            name: one.to(self._device) for name, one in state.tensors.get("best", {}).items()
        }
        with torch.no_grad():
            for name, one in self._trained.items():
                one.copy_(state.tensors["weights"][name])
        if state.step:
            for name, one in self._trained.items():
                self._optimiser.state[one] = {
                    "step": torch.tensor(float(state.step), device=self._device),
                    "exp_avg": state.tensors["mean"][name].to(self._device),
                    "exp_avg_sq": state.tensors["square"][name].to(self._device),
                }

    def _on_device(self, tokens: NDArray[np.int64]) -> Tensor:
        return torch.tensor(tokens, device=self._device)


def _context(model: Model, lessons: Lessons) -> int:
    """As long as an engine's by default, since some rotations depend on it."""
    return max(lessons.length, min(model.config.max_position, DEFAULT_CONTEXT))


def trained_names(student: Model, settings: DistillSettings) -> list[str]:
    """The weights that the settings train.

    Raises:
        UsageError: There are none.
    """
    names = [name for name in student.weights if settings.trains(name)]
    if not names:
        raise UsageError(
            f"no weight of {student.name} fits the patterns {settings.train}",
            allowed=f"names such as {next(iter(student.weights))}",
        )
    return names


def _state_names(
    student: Model, teacher: Model, settings: DistillSettings
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the hidden states that are compared, of both, as many."""
    layers = settings.layers or corresponding_layers(student, teacher)
    sizes = [model.config.hidden_size for model in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"hidden states of {sizes[0]} and {sizes[1]} dimensions cannot be compared",
            do="leave them out (hidden 0)",
        )
    most = teacher.config.num_layers
    if layers is None or len(layers) != student.config.num_layers or max(layers) >= most:
        raise UsageError(
            f"layers {list(layers or ())} for the {student.config.num_layers} layers of"
            f" {student.name}",
            allowed=f"one of the teacher's layers, 0 to {most - 1}, for each of them",
        )
    ours, theirs = (
        list(residual_stream(architectures.build(model.config)).values())
        for model in (student, teacher)
    )
    return tuple(ours[1:]), tuple(theirs[1 + layer] for layer in layers)


def _distance(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """Mean over layers and tokens of |ours - theirs|^2 / |theirs|^2.

    Relative to each token's own, since a few tokens have states a thousand times as large.
    """
    parts = [
        ((a.float() - b.float()).square().sum(-1) / (b.float().square().sum(-1) + _TINY)).mean()
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(parts).mean()


def _last_states(network: Network, tokens: Tensor) -> Tensor:
    """Last hidden states of windows, one after another."""
    with torch.no_grad():
        return torch.cat([network.body(window[None])[0] for window in tokens])


def _targets(tokens: Tensor) -> Tensor:
    """The token after each; none follows the last of a window."""
    following = torch.full_like(tokens, NO_TARGET)
    following[:, :-1] = tokens[:, 1:]
    return following.view(-1)


def _optimiser(trained: Mapping[str, Tensor], settings: DistillSettings) -> torch.optim.AdamW:
    """AdamW; vectors (norms, biases) do not decay."""
    matrices = [one for one in trained.values() if one.ndim > 1]
    vectors = [one for one in trained.values() if one.ndim == 1]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
        if params
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C back to the end of the block, so that no half step is ever saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)

"""Corrects a changed model layer by layer, so that its residual stream follows the original's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.errors import CapacityError, UnsupportedModelError, UsageError
from hasten.generation.kvcache import DEFAULT_CONTEXT
from hasten.generation.torch_graph import Decoder, device_of, run_on_threads, weight_tensors
from hasten.machine import available_cores, memory_limit
from hasten.measure.corpus import Windows
from hasten.models import Model, architectures
from hasten.models.ops import output_of
from hasten.models.weights import DenseTensor
from hasten.optimize.passes.interface import Workshop, parameters_of
from hasten.optimize.passes.refit import Refit
from hasten.optimize.pruning.structure import (
    Writer,
    corresponding_layers,
    layer_of,
    residual_stream,
    stream_writers,
    with_layer,
)
from hasten.optimize.quantization.gram import damped
from hasten.optimize.quantization.shelf import Shelf, fingerprint

__all__ = ["follow"]

_AT_ONCE = 4096
"""Tokens that go through a layer together."""

_TINY = 1e-12


def follow(student: Model, step: Refit, workshop: Workshop) -> Model:
    """Corrects the last product of each layer.

    With H [tokens, columns] the product's inputs, Y the stream after the layer, and T the
    original's stream before the layer that the next one stands for (so after the layers that were
    removed), what is added to the product's matrix is the D that makes least

        sum over tokens t of |Y_t + D H_t - T_t|^2 / |T_t|^2  +  a ridge.

    A token's error counts as a share of its own size, since a few tokens have states a thousand
    times as large. The next layer is corrected with what the corrected one gives it.

    Args:
        student: The model; its stream is as wide as the original's.
        step: The parameters.
        workshop: Gives the original, the text, and the place where finished matrices are kept.

    Raises:
        UsageError: The layers are not those of the original, or there is too little text.
        UnsupportedModelError: A model computes values that are not finite.
        CapacityError: It does not fit into the memory.
        KeyboardInterrupt: Ctrl-C; finished matrices are kept.
    """
    teacher, tokens = workshop.original, _cut(workshop.training, step.tokens)
    stands_for = _layers_of(student, teacher, step)
    writers = stream_writers(architectures.build(student.config)) or []
    _check_memory(student, teacher, tokens.size, max(one.product.columns for one in writers))
    shelf = _shelf(student, step, workshop)
    changed: dict[str, DenseTensor] = {}
    with torch.inference_mode(), run_on_threads(available_cores()):
        ours, theirs = (_Stream(model, tokens) for model in (student, teacher))
        ends = [*stands_for[1:], teacher.config.num_layers]
        for place, (origin, end) in enumerate(zip(stands_for, ends, strict=True)):
            workshop.progress(f"refitting layer {place + 1} of {len(ends)}", place / len(ends))
            unchanged = ours.is_like(theirs) and _same_layer(student, place, teacher, origin)
            theirs.run_to(end)
            if unchanged and end == origin + 1:
                ours.take_over(theirs)
                continue
            writer = writers[place]
            name = writer.product.weights[0]
            kept = shelf.take(name)
            found = None if kept is None else kept["correction"]
            correction = ours.run_corrected(writer, theirs.states, step.ridge, found)
            shelf.put(name, {"correction": correction})
            weight = student.weights[name].to_float32() + correction
            changed[name] = DenseTensor(name, "F32", weight)
    workshop.progress(f"{len(changed)} of {len(ends)} layers refitted", 1.0)
    return student.derive({**student.weights, **changed})


class _Stream:
    """A model's residual stream on all the text, carried from layer to layer.

    Attributes:
        layer: The layer that comes next.
        states: [tokens of a piece, width] before that layer, for each piece of the text.
    """

    def __init__(self, model: Model, tokens: NDArray[np.int64]) -> None:
        device = device_of()
        context = max(tokens.shape[1], min(model.config.max_position, DEFAULT_CONTEXT))
        self._decoder = Decoder(model.config, context, device)
        self._weights = weight_tensors(model, device)
        self._pieces = torch.split(
            torch.tensor(tokens, device=device), max(1, _AT_ONCE // tokens.shape[1])
        )
        self._names = list(residual_stream(architectures.build(model.config)).values())
        places = {output_of(op): place for place, op in enumerate(self._decoder.body.ops)}
        self._begins = [places[name] + 1 for name in self._names]
        self.layer = 0
        self.states = []
        for piece in self._pieces:
            values: dict[str, Tensor] = {}
            self._decoder.advance(self._weights, piece, values, range(self._begins[0]))
            self.states.append(values[self._names[0]])

    def is_like(self, other: _Stream) -> bool:
        """Whether both streams are equal, to the bit."""
        return all(map(torch.equal, self.states, other.states))

    def take_over(self, other: _Stream) -> None:
        """Steps over the next layer, with another's states after it."""
        self.layer, self.states = self.layer + 1, list(other.states)

    def run_to(self, layer: int) -> None:
        """Runs all layers before this one."""
        while self.layer < layer:
            for index in range(len(self._pieces)):
                self._run_layer(index)
            self.layer += 1

    def run_corrected(
        self,
        writer: Writer,
        targets: Sequence[Tensor],
        ridge: float,
        known: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Runs the next layer with its last product corrected.

        Args:
            writer: That product.
            targets: What the stream should be after it.
            ridge: See `damped`.
            known: The correction, where it was found earlier.

        Returns:
            What is added to the matrix, float32 of its shape.
        """
        source = writer.product.source
        inputs = [
            self._run_layer(index, source)[source] * writer.factor
            for index in range(len(self._pieces))
        ]
        self.layer += 1
        correction = _least_squares(inputs, self.states, targets, ridge) if known is None else known
        matrix = torch.tensor(correction, device=inputs[0].device)
        for state, given in zip(self.states, inputs, strict=True):
            state.addmm_(given, matrix.T)
        return correction

    def _run_layer(self, index: int, *keep: str) -> dict[str, Tensor]:
        """Runs the next layer on one piece; gives back the values that are named."""
        before, after = self._names[self.layer : self.layer + 2]
        values = {before: self.states[index]}
        ops = range(*self._begins[self.layer : self.layer + 2])
        kept = self._decoder.advance(self._weights, self._pieces[index], values, ops, keep)
        self.states[index] = values[after]
        return kept


def _least_squares(
    inputs: Sequence[Tensor], states: Sequence[Tensor], targets: Sequence[Tensor], ridge: float
) -> NDArray[np.float32]:
    """D [width, columns] of `follow`."""
    columns, width = inputs[0].shape[1], states[0].shape[1]
    gram, missing = np.zeros((columns, columns)), np.zeros((columns, width))
    for given, state, target in zip(inputs, states, targets, strict=True):
        share = torch.rsqrt(target.square().sum(-1, keepdim=True) + _TINY)
        weighted = given * share
        gram += (weighted.T @ weighted).double().cpu().numpy()
        missing += (weighted.T @ ((target - state) * share)).double().cpu().numpy()
    if not (np.isfinite(gram).all() and np.isfinite(missing).all()):
        raise UnsupportedModelError("the model computes values that are not finite")
    found: NDArray[np.float32] = np.linalg.solve(damped(gram, ridge), missing).T.astype(np.float32)
    return np.ascontiguousarray(found)


def _layers_of(student: Model, teacher: Model, step: Refit) -> tuple[int, ...]:
    """The original's layer that each of the student's stands for, in ascending order."""
    widths = [model.config.hidden_size for model in (student, teacher)]
    if widths[0] != widths[1]:
        raise UsageError(
            f"a stream of {widths[0]} values cannot follow one of {widths[1]}",
            do="refit models that passes made of the original",
        )
    layers = step.layers or corresponding_layers(student, teacher)
    count, most = student.config.num_layers, teacher.config.num_layers
    if (
        layers is None
        or len(layers) != count
        or list(layers) != sorted(set(layers))
        or not 0 <= layers[0] <= layers[-1] < most
    ):
        raise UsageError(
            f"layers {list(layers or ())} for the {count} layers of {student.name}",
            allowed=f"one of the original's layers, 0 to {most - 1}, for each, in ascending order",
        )
    return layers


def _same_layer(student: Model, place: int, teacher: Model, origin: int) -> bool:
    """Whether a layer has the tensors of the layer that it stands for."""
    ours = {name: one for name, one in student.weights.items() if layer_of(name) == place}
    return all(
        with_layer(name, origin) in teacher.weights
        and np.array_equal(one.to_float32(), teacher.weights[with_layer(name, origin)].to_float32())
        for name, one in ours.items()
    )


def _cut(windows: Windows, most: int) -> NDArray[np.int64]:
    """Windows of one length, that of the first, up to so many tokens."""
    length = min(len(windows.ids[0]), most) if windows.ids else 0
    count = most // max(1, length)
    found = [ids[:length] for ids in windows.ids if len(ids) >= length][:count]
    if length < 1 or not found:
        raise UsageError(f"{windows.name} has no text to refit on", do="give a longer text")
    return np.asarray(found, np.int64)


def _check_memory(student: Model, teacher: Model, tokens: int, columns: int) -> None:
    """Refuses what does not fit, before any of it is allocated."""
    weights = sum(
        int(np.prod(one.shape)) for model in (student, teacher) for one in model.weights.values()
    )
    needed = 4 * (weights + tokens * (3 * student.config.hidden_size + columns))
    device = device_of()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_limit()
    if needed > free:
        raise CapacityError(
            f"refitting takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are there",
            do="choose fewer tokens",
        )


def _shelf(student: Model, step: Refit, workshop: Workshop) -> Shelf:
    """Where corrections are kept that both models, the text and the parameters lead to."""
    keys = [
        fingerprint(model, workshop.training, parameters_of(step))
        for model in (student, workshop.original)
    ]
    return Shelf(workshop.directory, hashlib.sha256("".join(keys).encode()).hexdigest())

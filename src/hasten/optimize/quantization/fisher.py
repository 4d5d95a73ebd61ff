"""What rounding a matrix costs in what the model predicts, by one backward run over a text.

With an error d in what a product yields for a token, and g, the gradient of ln p(y) by that product
for a token y drawn from the model's own prediction, the KL divergence is E[(g d)^2] / 2 up to
second order, since the Fisher information is its Hessian (Amari 1998, "Natural gradient works
efficiently in learning"). Errors of different tokens are taken as independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hasten.errors import UnsupportedModelError
from hasten.generation.torch_graph import Decoder, device_of, run_on_threads, weight_tensors
from hasten.machine import available_cores
from hasten.measure.corpus import Windows
from hasten.models import Model
from hasten.models.ops import Linear
from hasten.models.weights import StoredTensor
from hasten.optimize.quantization.integer_weights import vocabulary_weights

__all__ = ["rounding_losses"]


def rounding_losses(
    model: Model,
    windows: Windows,
    rounded: Mapping[str, Sequence[StoredTensor]],
    progress: Callable[[float], None],
    *,
    seed: int,
) -> dict[str, list[float]]:
    """What each way to round each matrix costs by itself, about, in nats a token.

    Memory is that of the model in float32, and of all values of one window with their gradients.

    Args:
        model: As it is before.
        windows: The text.
        rounded: Ways to round, by the name of a matrix inside the layers.
        progress: Told the share that is done.
        seed: Of the tokens that are drawn.

    Raises:
        UnsupportedModelError: The model computes NaN or infinite values on the text.
    """
    with run_on_threads(available_cores()):
        found = _Losses(model, windows.context, rounded, seed)
        for index, window in enumerate(windows.ids):
            progress(index / len(windows.ids))
            found.add(window)
        return found.means()


class _Losses:
    """Sums over the tokens so far."""

    def __init__(
        self, model: Model, context: int, rounded: Mapping[str, Sequence[StoredTensor]], seed: int
    ) -> None:
        self._device = device_of()
        self._rounded = rounded
        self._weights = weight_tensors(model, self._device)
        for name in vocabulary_weights(model.config):
            self._weights[name].requires_grad_()  # so that values have gradients from there on
        self._decoder = Decoder(model.config, context, self._device)
        ops = [op for op in self._decoder.body.ops if isinstance(op, Linear)]
        self._products = [op for op in ops if op.weights[0] in rounded]
        self._draw = torch.Generator().manual_seed(seed)
        self._sums = {name: [0.0] * len(ways) for name, ways in rounded.items()}
        self._tokens = 0

    def add(self, window: Sequence[int]) -> None:
        """Adds what the errors cost on one window."""
        keep = {name for op in self._products for name in (op.source, op.out)}
        tokens = torch.tensor([window], device=self._device)
        hidden, values = self._decoder.hidden(self._weights, tokens, keep)
        logits = self._decoder.logits(self._weights, hidden)
        if not logits.isfinite().all():
            raise UnsupportedModelError("the model computes values that are not finite")
        chances = logits.detach().softmax(1).cpu()
        drawn = torch.multinomial(chances, 1, generator=self._draw)[:, 0].to(self._device)
        loss = functional.cross_entropy(logits, drawn, reduction="sum")
        gradients = torch.autograd.grad(loss, [values[op.out] for op in self._products])
        for op, gradient in zip(self._products, gradients, strict=True):
            self._add(op.weights[0], values[op.source], gradient)
        self._tokens += len(window)

    @torch.no_grad()
    def _add(self, name: str, inputs: Tensor, gradient: Tensor) -> None:
        for index, tensor in enumerate(self._rounded[name]):
            error = torch.tensor(tensor.to_float32(), device=self._device) - self._weights[name]
            change = (gradient * (inputs @ error.T)).sum(1)
            self._sums[name][index] += float(change.square().sum())

    def means(self) -> dict[str, list[float]]:
        """Nats a token."""
        return {
            name: [total / (2 * self._tokens) for total in sums]
            for name, sums in self._sums.items()
        }

"""The loss of a student beside its teacher, a few rows of logits at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hasten.generation.torch_graph import Decoder

__all__ = ["LOGIT_BYTES", "NO_TARGET", "LogitLoss", "Network", "learn_by_rows", "loss_by_rows"]

LOGIT_BYTES = 256 << 20
"""What the logits of both, their softmaxes and gradients may take together."""
NO_TARGET = -1
"""Where no token follows."""

_COPIES = 10
"""Arrays of logits that are alive at once, counted generously."""
_CACHED_ROWS = 16


@dataclass(frozen=True)
class Network:
    """A decoder with its weights."""

    decoder: Decoder
    weights: Mapping[str, Tensor]

    def body(self, tokens: Tensor, keep: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Decoder.hidden`."""
        return self.decoder.hidden(self.weights, tokens, keep)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [rows, vocabulary] of last hidden states, float32."""
        return self.decoder.logits(self.weights, hidden)


@dataclass(frozen=True)
class LogitLoss:
    """(1 - share) * T^2 * KL(teacher || student) + share * cross entropy.

    The factor T^2 keeps gradients as large at any temperature T (Hinton et al. 2015, section 2.1).
    Each term is a mean over the tokens that it is defined for: the last of a window has no target.

    Attributes:
        temperature: T.
        cross_entropy: The share.
    """

    temperature: float
    cross_entropy: float

    def __call__(self, ours: Tensor, theirs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over rows of KL * T^2 and of cross entropy.

        Args:
            ours: [rows, vocabulary], of the student.
            theirs: Of the teacher, as large.
            targets: int64 [rows], the token that follows, or `NO_TARGET`.
        """
        divergence = functional.kl_div(
            functional.log_softmax(ours / self.temperature, -1),
            functional.log_softmax(theirs / self.temperature, -1),
            reduction="sum",
            log_target=True,
        )
        if self.cross_entropy == 0:
            return divergence * self.temperature**2, ours.new_zeros(())
        surprise = functional.cross_entropy(ours, targets, ignore_index=NO_TARGET, reduction="sum")
        return divergence * self.temperature**2, surprise

    def factors(self, targets: Tensor) -> tuple[float, float]:
        """What makes of the two sums over some rows their share of the mean over all `targets`."""
        predicted = max(1, int((targets != NO_TARGET).sum()))
        return (1 - self.cross_entropy) / len(targets), self.cross_entropy / predicted

    def descend(
        self, ours: Tensor, theirs: Tensor, targets: Tensor, factors: tuple[float, float]
    ) -> float:
        """The sums of `__call__` times factors, added; `ours` becomes the gradient by itself.

        Written out, since what autograd keeps of so many columns costs more than it computes. A few
        rows at a time, which stay in a processor's caches.

        Args:
            ours: As for `__call__`; overwritten.
            theirs: As for `__call__`.
            targets: As for `__call__`.
            factors: Of the two sums.
        """
        total = 0.0
        for begin in range(0, len(targets), _CACHED_ROWS):
            rows = slice(begin, begin + _CACHED_ROWS)
            total += self._descend(ours[rows], theirs[rows], targets[rows], factors)
        return total

    def _descend(
        self, ours: Tensor, theirs: Tensor, targets: Tensor, factors: tuple[float, float]
    ) -> float:
        softened = torch.log_softmax(ours / self.temperature, -1)
        wanted = torch.log_softmax(theirs / self.temperature, -1)
        chances = wanted.exp()
        divergence = torch.dot(chances.view(-1), wanted.sub_(softened).view(-1)).item()
        total = factors[0] * self.temperature**2 * divergence
        learnt = None
        if self.cross_entropy:
            logs, known = torch.log_softmax(ours, -1), targets != NO_TARGET
            places = targets[known, None]
            total -= factors[1] * logs[known].gather(1, places).sum().item()
            learnt = logs.exp_() * known[:, None]
            learnt[known] = learnt[known].scatter_add(1, places, -torch.ones_like(places).float())
        torch.sub(softened.exp_(), chances, out=ours).mul_(factors[0] * self.temperature)
        if learnt is not None:
            ours.add_(learnt, alpha=factors[1])
        return total


def learn_by_rows(
    loss: LogitLoss,
    student: Network,
    teacher: Network,
    hidden: tuple[Tensor, Tensor],
    targets: Tensor,
    weight: float,
) -> tuple[float, Tensor]:
    """The mean loss, with gradients, so that no more than `LOGIT_BYTES` of logits are alive.

    Args:
        loss: The loss.
        student: Gradients are added to its weights.
        teacher: Its weights get none.
        hidden: Last hidden states [rows, width] of student and teacher.
        targets: int64 [rows].
        weight: Factor of the gradients.

    Returns:
        The loss, and its gradient, times the factor, by the student's hidden states.
    """
    gradient = torch.empty_like(hidden[0])
    total = 0.0
    factors = loss.factors(targets)
    for rows in _pieces(targets, student):
        ours = hidden[0][rows].detach().requires_grad_(True)
        logits = student.head(ours)
        with torch.no_grad():
            theirs = teacher.head(hidden[1][rows])
            slope = logits.detach().clone()
            total += loss.descend(slope, theirs, targets[rows], factors)
        torch.autograd.backward([logits], [slope.mul_(weight)])
        if ours.grad is None:
            raise TypeError("the head does not read the hidden states")
        gradient[rows] = ours.grad
    return total, gradient


def loss_by_rows(
    loss: LogitLoss,
    student: Network,
    teacher: Network,
    hidden: tuple[Tensor, Tensor],
    targets: Tensor,
) -> float:
    """The mean loss alone; arguments as for `learn_by_rows`."""
    total = 0.0
    factors = loss.factors(targets)
    with torch.no_grad():
        for rows in _pieces(targets, student):
            sums = loss(student.head(hidden[0][rows]), teacher.head(hidden[1][rows]), targets[rows])
            total += factors[0] * sums[0].item() + factors[1] * sums[1].item()
    return total


def _pieces(targets: Tensor, network: Network) -> Iterator[slice]:
    step = max(1, LOGIT_BYTES // (_COPIES * 4 * network.decoder.vocab_size))
    for begin in range(0, len(targets), step):
        yield slice(begin, begin + step)

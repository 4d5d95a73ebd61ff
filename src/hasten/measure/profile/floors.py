"""What an op cannot take less than: bytes over bandwidth, operations over rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hasten.generation.formats import MatrixFormat
from hasten.generation.kvcache import KV_BLOCK, kv_bytes_per_block
from hasten.generation.op_times import PhaseTimes
from hasten.machine import Rates
from hasten.measure.profile.ops import NamedOp
from hasten.models.config import ModelConfig
from hasten.models.ops import Attention, Linear

__all__ = ["FORMULAS", "Costs", "Work"]

FORMULAS = {
    "bytes": "linear: its matrix, once a step, as packed; attention: keys and values of the "
    "positions that the sequences see, once a step",
    "operations": "linear: 2 * rows * columns a token; attention: 4 * heads * head_dim a token "
    "and position that it sees",
    "floor": "max(bytes / bandwidth, operations / rate), summed over the ops that have one",
    "rate": "measured int8 rate for integer weights, fp32 rate for float weights and attention",
    "others": "norms, rotations, embeddings and the like move little: no floor",
}


@dataclass(frozen=True, slots=True)
class Work:
    """What an op had to do in all steps of a phase.

    Attributes:
        bytes: Read from memory: weights, or keys and values.
        operations: A multiply-add counting as two.
        integer: They are integer operations.
    """

    bytes: float
    operations: float
    integer: bool

    def floor(self, rates: Rates) -> float:
        """Least seconds on a machine."""
        return max(self.bytes / rates.bandwidth, self.operations / self.rate(rates))

    def rate(self, rates: Rates) -> float:
        """Operations per second that count."""
        return rates.int8 if self.integer else rates.fp32


@dataclass(frozen=True, slots=True)
class Costs:
    """Tells the work of ops of one model.

    Attributes:
        config: Of the model.
        formats: Of its matrices as they run, by tensor name.
        kv: Format of the KV cache.
    """

    config: ModelConfig
    formats: Mapping[str, str]
    kv: str

    def work(self, named: NamedOp, times: PhaseTimes) -> Work | None:
        """What an op did in a phase; None for ops that have no floor."""
        op = named.op
        tokens = times.rows if named.selected else times.tokens
        match op:
            case Linear():
                size = sum(
                    self._bytes(name, (rows, op.columns))
                    for name, rows in zip(op.weights, op.rows, strict=True)
                )
                operations = 2.0 * sum(op.rows) * op.columns * tokens
                integer = self._format(op.weights[0], op.columns).group > 0
                return Work(size * times.steps, operations, integer)
            case Attention():
                each = kv_bytes_per_block(
                    self.kv, 1, self.config.num_kv_heads, op.width // op.heads
                )
                read = _seen(times.ends, op.window) * each / KV_BLOCK
                operations = 4.0 * op.width * _seen(times.positions, op.window)
                return Work(read, operations, integer=False)
            case _:
                return None

    def _format(self, name: str, columns: int) -> MatrixFormat:
        return MatrixFormat.from_name(self.formats[name], columns)

    def _bytes(self, name: str, shape: tuple[int, int]) -> int:
        return self._format(name, shape[1]).nbytes(shape)


def _seen(counts: Mapping[int, int], window: int | None) -> int:
    """Positions that tokens see of which so many are at each position."""
    limit = window or max(counts) + 1
    return sum(min(position + 1, limit) * count for position, count in counts.items())

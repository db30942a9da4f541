"""What a card could do at best: times from bytes and floating-point operations, and shares of them."""

from __future__ import annotations

from dataclasses import dataclass

from graphs.contract import ModelConfig


@dataclass(frozen=True)
class Rates:
    """What a card reaches, as it was measured.

    Attributes:
        copy_bytes: bytes a second of a copy within its memory, those read and those written.
        matrix_flops: floating-point operations a second of a large product of float16 matrices.
    """

    copy_bytes: float
    matrix_flops: float

    def seconds(self, size: float, flops: float) -> float:
        """The least time of work that moves `size` bytes and computes `flops`."""
        return max(size / self.copy_bytes, flops / self.matrix_flops)


def step_bytes(
    config: ModelConfig, weight_bytes: int, batch: int, length: float, cache_itemsize: int
) -> float:
    """Bytes that a decode step reads: all weights once, and the cache of each row.

    Args:
        config: sizes of the model.
        weight_bytes: of the weights that the step computes with.
        batch: rows.
        length: tokens of a row in the cache, on average.
        cache_itemsize: bytes of a number in the cache.
    """
    return weight_bytes + length * config.cache_bytes(batch, 1, cache_itemsize)


def token_flops(config: ModelConfig, tokens: int) -> float:
    """Floating-point operations for tokens: a multiplication and an addition for each parameter."""
    return 2.0 * config.num_parameters * tokens

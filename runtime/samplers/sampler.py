"""The base of all samplers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


class Sampler:
    """Chooses each row's next token from its logits.

    Write one's own by overriding `get_next_token(probabilities, generators)`, and `get_config` where
    it has parameters. Rows are independent: each has its own random generator, so what a row draws
    does not depend on the rows beside it.

    Args:
        temperature: divides the logits; above 1 flattens the distribution, below 1 sharpens it.
        seed: of the random generators; `None` draws anew at each call.

    Raises:
        ValueError: if the temperature is not a positive number or the seed is negative.
    """

    def __init__(self, temperature: float = 1.0, seed: int | None = None) -> None:
        is_number = isinstance(temperature, numbers.Real) and not isinstance(temperature, bool)
        if not is_number or not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a number above 0, got {temperature!r}")
        is_whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
        if seed is not None and (not is_whole or seed < 0):
            raise ValueError(f"seed must be a whole number of at least 0 or None, got {seed!r}")
        self.temperature = float(temperature)
        self.seed = None if seed is None else int(seed)

    def sample(
        self, logits: NDArray[np.float32], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """The next token of each row.

        Args:
            logits: float32 [rows, vocabulary].
            generators: one random generator a row.

        Returns:
            int64 [rows].
        """
        return self.get_next_token(softmax(logits / self.temperature), generators)

    def get_next_token(
        self, probabilities: NDArray[np.floating[Any]], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """The next token of each row, int64 [rows], from probabilities [rows, vocabulary]."""
        raise TypeError(f"{type(self).__name__} must override get_next_token or sample")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain JSON values."""
        return {"temperature": self.temperature, "seed": self.seed}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The sampler whose `get_config` gave `config`."""
        return cls(**config)


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Probabilities along the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.floating[Any]] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def draw(
    probabilities: NDArray[np.floating[Any]], generators: Sequence[np.random.Generator]
) -> NDArray[np.int64]:
    """One index a row by its probabilities [rows, choices], through the inverse distribution."""
    cumulative = np.cumsum(probabilities, axis=-1, dtype=np.float64)
    picks = [
        np.searchsorted(row, generator.random() * row[-1], side="right")
        for row, generator in zip(cumulative, generators, strict=True)
    ]
    last = probabilities.shape[-1] - 1
    return np.array([min(int(pick), last) for pick in picks], np.int64)

"""How far a model's logits are from a reference's on the same inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LogitError:
    """What a number of places showed.

    Attributes:
        places: at which a next token was predicted.
        mean, maximum: absolute difference of logits over the standard deviation of the reference's.
        same_choice: share of places where both give the same token the highest logit.
    """

    places: int
    mean: float
    maximum: float
    same_choice: float


class LogitErrorSum:
    """Adds up the differences of any number of logits."""

    def __init__(self) -> None:
        self._places = self._values = self._same = 0
        self._difference = self._maximum = self._sum = self._squares = 0.0

    def add(self, logits: NDArray[np.float32], reference: NDArray[np.float32]) -> None:
        """Adds places; both are [..., vocabulary] of the same shape."""
        expected = reference.astype(np.float64)
        difference = np.abs(logits - expected)
        self._places += math.prod(reference.shape[:-1])
        self._values += reference.size
        self._same += int((logits.argmax(axis=-1) == reference.argmax(axis=-1)).sum())
        self._difference += float(difference.sum())
        self._maximum = max(self._maximum, float(difference.max()))
        self._sum += float(expected.sum())
        self._squares += float((expected**2).sum())

    def result(self) -> LogitError:
        """Of what has been added, which is at least one place."""
        mean = self._sum / self._values
        deviation = math.sqrt(max(self._squares / self._values - mean**2, 0.0))
        return LogitError(
            places=self._places,
            mean=self._difference / self._values / deviation,
            maximum=self._maximum / deviation,
            same_choice=self._same / self._places,
        )

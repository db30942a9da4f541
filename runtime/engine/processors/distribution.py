"""What several processors ask of a row of logits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_FAR = np.float32(-87)


def largest_logit(logits: NDArray[np.float32]) -> np.float32:
    """The largest of the logits [vocabulary].

    Raises:
        ValueError: if all are minus infinity, or some are NaN or plus infinity.
    """
    largest: np.float32 = np.maximum.reduce(logits)  # NaN if any is
    if not math.isfinite(largest):
        raise ValueError(
            "no token is left to choose: the options of the request exclude all of them"
            if largest == -np.inf
            else "the options of the request make logits that are NaN or infinite: "
            "give less extreme numbers"
        )
    return largest


def differences_of(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far the logits [vocabulary] are from the largest, from 0 to -87, where it ends.

    So their exponentials are normal numbers: with others, as of -90, arithmetic is many times slower.

    Raises:
        ValueError: as `largest_logit`.
    """
    differences = logits - largest_logit(logits)
    np.maximum(differences, _FAR, out=differences)
    return differences


def mean_difference(
    differences: NDArray[np.float32], weights: NDArray[np.float32], total: float
) -> float:
    """How far logits are from the largest in the mean, by their probabilities; 0 or less.

    The entropy is the logarithm of the total less this.

    Args:
        differences: [vocabulary], from the largest logit; overwritten.
        weights: [vocabulary], the exponentials of these.
        total: sum of the weights.
    """
    differences *= weights
    return float(differences.sum()) / total

"""Logits of which some tokens stay and the others are excluded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def keep_only(logits: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
    """Sets the logits [vocabulary] of all tokens but some to minus infinity."""
    # Where few stay, as nearly always, this is faster than a mask.
    kept = logits[ids]
    logits.fill(-np.inf)
    logits[ids] = kept


def keep_where(logits: NDArray[np.float32], kept: NDArray[np.bool_]) -> None:
    """Sets the logits [vocabulary] of tokens that are not marked to minus infinity."""
    keep_only(logits, kept.nonzero()[0])


def keep_probable(logits: NDArray[np.float32], weights: NDArray[np.float32], least: float) -> None:
    """Keeps tokens of at least some weight, or else the most probable.

    Args:
        logits: [vocabulary], changed in place.
        weights: [vocabulary], exponentials of the logits less the largest.
        least: of the weights that stay.
    """
    if least > 1:
        keep_where(logits, logits == np.maximum.reduce(logits))
    else:
        keep_where(logits, weights >= np.float32(least))

"""Top-p sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.probabilities import (
    Floats,
    draw_one,
    exponentials,
    find_sum,
    largest,
    running_sums,
)
from runtime.samplers.arguments import share, whole_number, within_vocabulary
from runtime.samplers.sampler import Sampler

# The nucleus is first looked for among tokens of at least these shares of the best one's
# probability, so that a whole sort is left to distributions that are nearly flat.
_SHARES = tuple(math.exp(-distance) for distance in (3, 6, 9, 12))


class TopPSampler(Sampler):
    """Draws among the most probable tokens that together exceed a probability of p.

    Nucleus sampling (Holtzman et al., 2019, https://arxiv.org/abs/1904.09751): tokens are taken from
    the most probable on until their sum is more than p; the most probable one always stays.

    Args:
        p: the probability to exceed; 1 keeps all tokens.
        k: draw among the k most probable at the most; p is still a share of the whole distribution.
        seed: of the random generators; `None` draws anew at each call.
        temperature: divides the logits first.

    Raises:
        ValueError: if p is not above 0 and at most 1, or k is not a whole number of at least 1 or is
            larger than the vocabulary.
    """

    def __init__(
        self,
        p: float = 0.1,
        k: int | None = None,
        seed: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(temperature=temperature, seed=seed)
        self.p = share("p", p, zero=False)
        self.k = None if k is None else whole_number("k", k, 1, or_none=True)

    def check_vocabulary(self, size: int) -> None:
        """Raises `ValueError` if k is larger than the vocabulary."""
        if self.k is not None:
            within_vocabulary("k", self.k, size)

    def sample(
        self, logits: NDArray[np.float32], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """Draws from the nucleus of each row's softmax."""
        self.check_vocabulary(logits.shape[-1])
        picks = [self._draw(row, g) for row, g in zip(logits, generators, strict=True)]
        return np.array(picks, np.int64)

    def _draw(self, row: NDArray[np.float32], generator: np.random.Generator) -> int:
        weights = exponentials(row, self.temperature)
        if self.k is None:
            if self.p == 1:  # nothing to cut off
                return draw_one(weights, generator)
            kept = nucleus(weights, self.p * float(weights.sum(dtype=np.float64)))
        else:
            top = np.sort(largest(row, self.k))
            kept = top[nucleus(weights[top], self.p * float(weights.sum(dtype=np.float64)))]
        return int(kept[draw_one(weights[kept], generator)])

    def get_config(self) -> dict[str, Any]:
        return {"p": self.p, "k": self.k, **super().get_config()}


def nucleus(weights: Floats, mass: float) -> NDArray[np.int64]:
    """The fewest largest weights whose sum exceeds a mass, all of them where none does.

    Args:
        weights: [choices], the largest of them 1.
        mass: what the sum must exceed; 0 or more.

    Returns:
        Their indices in rising order, of equal weights at the edge the lower ones, and none of no
        weight.
    """
    for share_of_best in _SHARES:
        values = weights[np.flatnonzero(weights >= share_of_best)]
        if values.sum(dtype=np.float64) > mass:
            break
    else:
        values = weights
    values = np.sort(values)[::-1]
    last = find_sum(values, running_sums(values), mass)
    edge = values[last]
    kept = np.flatnonzero(weights >= edge)
    at_edge = np.flatnonzero(weights[kept] == edge)
    surplus = len(kept) - (last + 1)
    return np.delete(kept, at_edge[len(at_edge) - surplus :])

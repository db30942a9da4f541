"""Top-p sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.probabilities import (
    Floats,
    draw_one,
    exponentials,
    find_sum,
    largest_by_id,
    running_sums,
)
from runtime.samplers.arguments import share, whole_number, within_vocabulary
from runtime.samplers.sampler import Sampler

# Below 1 by more than sums in float32 are wrong, which NumPy adds up pairwise.
_BELOW_ONE = 0.99


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
        top = None if self.k is None else largest_by_id(row, self.k)
        weights = exponentials(row, self.temperature, in_place=True)
        if top is None and self.p == 1:  # nothing to cut off
            return draw_one(weights, generator)
        total = float(weights.sum())
        if top is None:
            kept = nucleus(weights, self.p * total, total)
        else:
            among = weights[top]
            kept = top[nucleus(among, self.p * total, float(among.sum()))]
        return int(kept[draw_one(weights[kept], generator)])

    def get_config(self) -> dict[str, Any]:
        return {"p": self.p, "k": self.k, **super().get_config()}


def nucleus(weights: Floats, mass: float, total: float) -> NDArray[np.int64]:
    """The fewest largest weights whose sum exceeds a mass, all of them where none does.

    Args:
        weights: [choices], not negative, some above 0.
        mass: what the sum must exceed; 0 or more.
        total: sum of all weights.

    Returns:
        Their indices in rising order, of equal weights at the edge the lower ones, and none of no
        weight.
    """
    # Weights below this are together less than the total is above the mass, so none of them is in the
    # nucleus, and only the few others need to be sorted.
    floor = _BELOW_ONE * (total - mass) / len(weights)
    candidates: NDArray[np.int64] = (weights >= floor).nonzero()[0]
    values = weights[candidates]
    falling = -values
    falling.sort()
    np.negative(falling, out=falling)  # a reversed view would be slow to sum up
    last = find_sum(falling, running_sums(falling), mass)
    edge = falling[last]
    inside = values >= edge
    surplus = np.count_nonzero(inside) - (last + 1)
    if surplus:
        at_edge = (values == edge).nonzero()[0]
        inside[at_edge[len(at_edge) - surplus :]] = False
    kept: NDArray[np.int64] = candidates[inside.nonzero()[0]]
    return kept

"""Top-p sampling."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.decoder import BestLogits
from runtime.numbers import share, whole_number
from runtime.probabilities import (
    Floats,
    draw_listed,
    draw_one,
    exponentials,
    find_sum,
    largest_by_id,
    largest_listed,
    running_sums,
)
from runtime.samplers.arguments import within_vocabulary
from runtime.samplers.sampler import Sampler

# Below 1 by more than sums in float32 are wrong, which NumPy adds up pairwise.
_BELOW_ONE = 0.99
# More than a device's sum in float32 differs from this one's, as a share of it: measured, 4e-7 for sums
# in many parts, as of a GPU, and 1.1e-5 for ONNX Runtime's on a CPU.
_SUM_ERROR = 2.0**-16
# More than exponentials in float32 err by: the larger logit's may be the smaller by so much.
_WEIGHT_ERROR = 2.0**-20


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
        self.k = None if k is None else whole_number("k", k, none="")

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

    def sample_best(
        self, best: BestLogits, generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64] | None:
        """As `sample`; `None` where a nucleus has, or may have, tokens that are not among the best.

        A device sums the weights in another order than the host. Where a sum is so near to p that this
        could decide, the result is `None` too.
        """
        self.check_vocabulary(best.vocabulary)
        ids = best.token_ids.tolist()
        weights = exponentials(best.logits, self.temperature).tolist()
        kept = []  # of all rows, before the first draw
        for row, total in enumerate(best.totals.tolist()):
            places = self._nucleus_listed(best, row, ids[row], weights[row], total)
            if places is None:
                return None
            kept.append(places)
        picks = []
        for row, (places, generator) in enumerate(zip(kept, generators, strict=True)):
            drawn = draw_listed([weights[row][i] for i in places], generator)
            picks.append(ids[row][places[drawn]])
        return np.array(picks, np.int64)

    def _nucleus_listed(
        self, best: BestLogits, row: int, ids: list[int], weights: list[float], total: float
    ) -> list[int] | None:
        """`listed_nucleus` of one row, within its k largest logits."""
        among: Sequence[int] | None = None
        if self.k is not None and self.k < len(ids):
            among = largest_listed(best.logits[row].tolist(), ids, self.k, best.complete)
        closed = best.complete or among is not None
        among = range(len(ids)) if among is None else among
        if self.p == 1:  # nothing to cut off
            return sorted(among, key=ids.__getitem__) if closed else None
        return listed_nucleus(weights, ids, among, self.p * total, _SUM_ERROR * total, closed)

    def _draw(self, row: NDArray[np.float32], generator: np.random.Generator) -> int:
        top = None if self.k is None else largest_by_id(row, self.k)
        weights = exponentials(row, self.temperature, in_place=True)
        if self.p == 1:  # nothing to cut off
            if top is None:
                return draw_one(weights, generator)
            return int(top[draw_one(weights[top], generator)])
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


def listed_nucleus(
    weights: Sequence[float],
    ids: Sequence[int],
    among: Sequence[int],
    mass: float,
    error: float,
    closed: bool,
) -> list[int] | None:
    """`nucleus` where a list of the largest weights is all that is known.

    Args:
        weights: the largest of a row, as plain numbers.
        ids: their token ids.
        among: places in the list that may be taken.
        mass: what the sum must exceed.
        error: how far the mass may be off.
        closed: whether there is nothing else to take, as a full list has it or a k.

    Returns:
        Places in the list, in rising order of ids; `None` where the error, or what is not in the list,
        may decide.
    """
    falling = sorted([weights[i] for i in among], reverse=True)
    sums = list(accumulate(falling))
    last = bisect_right(sums, mass)
    reached = last < len(sums)
    below, above = sums[last - 1] if last else -math.inf, sums[last] if reached else math.inf
    if not below + error < mass < above - error or not (reached or closed):
        return None
    last = last if reached else bisect_left(sums, sums[-1])
    edge = falling[last]
    if not closed and edge <= falling[-1] * (1 + _WEIGHT_ERROR):
        return None
    kept = sorted([i for i in among if weights[i] >= edge], key=ids.__getitem__)
    if surplus := len(kept) - (last + 1):
        dropped = [i for i in kept if weights[i] == edge][-surplus:]
        kept = [i for i in kept if i not in dropped]
    return kept

"""The most probable tokens that together have a probability."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.distribution import differences_of
from runtime.engine.processors.kept import keep_only
from runtime.engine.processors.processor import Processor, TokenIds
from runtime.numbers import share

# Below 1 by more than sums in float32 are wrong, which NumPy adds up pairwise.
_BELOW_ONE = 0.99


class TopP(Processor):
    """Keeps the fewest most probable tokens that reach a probability together.

    Nucleus sampling (Holtzman et al., 2019, https://arxiv.org/abs/1904.09751) as transformers'
    `TopPLogitsWarper` has it: tokens are excluded from the least probable on, while those excluded
    sum up to 1 - p at the most, in float32; the most probable one stays. Where the last of these sums
    is nearer to 1 - p than float32 tells, one token more or less may stay than on another machine, in
    transformers too. Of equally probable tokens at the edge the lower ids stay; which ones do in
    transformers depends on how torch sorts them, their number is the same.

    Args:
        top_p: p; 1 keeps all, 0 only the most probable.

    Raises:
        ValueError: if it is not a number from 0 to 1.
    """

    def __init__(self, top_p: object) -> None:
        self._rest = 1 - share("top_p", top_p, zero=True)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Excludes the others."""
        if self._rest == 0:
            return
        weights = np.exp(differences_of(logits))
        # All weights below this sum up to less than the rest, so only the others need to be sorted.
        floor = _BELOW_ONE * self._rest * float(weights.sum()) / len(weights)
        ids = (weights >= floor).nonzero()[0]
        weights[ids] = 0
        values = logits[ids]
        rising = np.sort(values)
        sums = np.exp(rising - rising[-1]).cumsum(dtype=np.float64) + float(weights.sum())
        excluded = (sums / sums[-1]).astype(np.float32) <= np.float32(self._rest)
        first = min(int(np.count_nonzero(excluded)), len(ids) - 1)
        edge = rising[first]
        stays = values >= edge
        if surplus := np.count_nonzero(stays) - (len(ids) - first):
            stays[(values == edge).nonzero()[0][-surplus:]] = False
        keep_only(logits, ids[stays])

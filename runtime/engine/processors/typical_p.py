"""The tokens that are about as surprising as is to be expected."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.arguments import check_inner_share
from runtime.engine.processors.distribution import differences_of, mean_difference
from runtime.engine.processors.kept import keep_only
from runtime.engine.processors.processor import Processor, TokenIds

_RADII = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, np.inf)  # in nats
_BELOW_ONE = 0.99  # by more than sums in float32 are wrong


class TypicalP(Processor):
    """Keeps the most typical tokens that reach a probability together.

    Locally typical sampling (Meister et al., 2022, https://arxiv.org/abs/2202.00666) as transformers'
    `TypicalLogitsWarper` has it: tokens are taken in the order of how far their surprise is from the
    entropy, until they reach the mass; those as far as the last of them stay too. Where the sum is
    nearer to the mass, or two distances to each other, than float32 tells, it may be one token more or
    less than on another machine, in transformers too.

    Args:
        typical_p: the mass.

    Raises:
        ValueError: if it is not a number above 0 and below 1.
    """

    def __init__(self, typical_p: object) -> None:
        self._mass = np.float32(check_inner_share("typical_p", typical_p))

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Excludes the others."""
        differences = differences_of(logits)
        weights = np.exp(differences)
        total = float(weights.sum())
        # A token's surprise less the entropy is the mean logit less its own.
        mean = logits.max() + np.float32(mean_difference(differences, weights, total))
        distances = np.abs(logits - mean)
        for radius in _RADII:  # in which the mass is most often: sorting all would take long
            ids = (distances <= radius).nonzero()[0]
            if float(weights[ids].sum()) < _BELOW_ONE * self._mass * total:
                continue
            near = distances[ids]
            order = near.argsort()
            sums = (weights[ids[order]].cumsum(dtype=np.float64) / total).astype(np.float32)
            last = int(sums.searchsorted(self._mass))
            if last < len(sums):
                keep_only(logits, ids[near <= near[order[last]]])
                return

"""Tokens with at least a probability that depends on the entropy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.arguments import check_inner_share
from runtime.engine.processors.distribution import differences_of, mean_difference
from runtime.engine.processors.kept import keep_probable
from runtime.engine.processors.processor import Processor, TokenIds


class EtaCutoff(Processor):
    """Keeps tokens with at least a probability of eta, and the most probable.

    Eta sampling (Hewitt et al., 2022, https://arxiv.org/abs/2210.15191), transformers'
    `EtaLogitsWarper`: eta is the smaller of epsilon and `sqrt(epsilon) * exp(-entropy)`. A probability
    nearer to eta than float32 tells may fall on either side.

    Args:
        eta_cutoff: epsilon.

    Raises:
        ValueError: if it is not a number above 0 and below 1.
    """

    def __init__(self, eta_cutoff: object) -> None:
        self._epsilon = check_inner_share("eta_cutoff", eta_cutoff)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Excludes the others."""
        differences = differences_of(logits)
        weights = np.exp(differences)
        total = float(weights.sum())
        entropy = math.log(total) - mean_difference(differences, weights, total)
        eta = min(self._epsilon, math.sqrt(self._epsilon) * math.exp(-entropy))
        keep_probable(logits, weights, eta * total)

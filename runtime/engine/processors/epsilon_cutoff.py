"""Tokens with at least a probability."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.arguments import check_inner_share
from runtime.engine.processors.distribution import differences_of
from runtime.engine.processors.kept import keep_probable
from runtime.engine.processors.processor import Processor, TokenIds


class EpsilonCutoff(Processor):
    """Keeps tokens with at least a probability of epsilon, and the most probable.

    Epsilon sampling (Hewitt et al., 2022, https://arxiv.org/abs/2210.15191), transformers'
    `EpsilonLogitsWarper`. A probability nearer to epsilon than float32 tells may fall on either side.

    Args:
        epsilon_cutoff: epsilon.

    Raises:
        ValueError: if it is not a number above 0 and below 1.
    """

    def __init__(self, epsilon_cutoff: object) -> None:
        self._epsilon = check_inner_share("epsilon_cutoff", epsilon_cutoff)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Excludes the others."""
        weights = np.exp(differences_of(logits))
        keep_probable(logits, weights, self._epsilon * float(weights.sum()))

"""Greedy search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.decoder import BestLogits
from runtime.probabilities import largest_listed
from runtime.samplers.sampler import Sampler


class GreedySampler(Sampler):
    """Takes the most probable token, the first of them on a tie.

    Args:
        temperature: taken as Keras takes it; it changes no order, so it has no effect.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature)

    def sample(
        self, logits: NDArray[np.float32], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """The index of each row's largest logit; `generators` are not used."""
        token_ids: NDArray[np.int64] = logits.argmax(axis=-1)
        return token_ids

    def sample_best(
        self, best: BestLogits, generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64] | None:
        """As `sample`; `None` where a row's best logits are all equal and some are missing."""
        picks = best.token_ids[:, 0].copy()
        tied = best.logits[:, 0] == best.logits[:, :2][:, -1]  # also where there is only one
        for row in tied.nonzero()[0].tolist():
            ids = best.token_ids[row].tolist()
            places = largest_listed(best.logits[row].tolist(), ids, 1, best.complete)
            if places is None:
                return None
            picks[row] = ids[places[0]]
        return picks

    def get_config(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

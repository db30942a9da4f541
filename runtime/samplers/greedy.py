"""Greedy search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.samplers.sampler import Sampler


class GreedySampler(Sampler):
    """Takes the most probable token, the first of them on a tie."""

    def __init__(self) -> None:
        super().__init__()

    def sample(
        self, logits: NDArray[np.float32], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """The index of each row's largest logit; `generators` are not used."""
        token_ids: NDArray[np.int64] = np.argmax(logits, axis=-1)
        return token_ids

    def get_config(self) -> dict[str, Any]:
        return {}

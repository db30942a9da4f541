"""Top-k sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.decoder import BestLogits
from runtime.numbers import whole_number
from runtime.probabilities import draw_few, draw_one, exponentials, largest_by_id, largest_listed
from runtime.samplers.arguments import within_vocabulary
from runtime.samplers.sampler import Sampler

_FEW = 64  # choices: a loop over more is slower than array operations


class TopKSampler(Sampler):
    """Draws among the k most probable tokens (Fan et al., 2018, https://arxiv.org/abs/1805.04833).

    Args:
        k: how many tokens to draw among; of equally probable ones at the edge, the lower ids stay.
        seed: of the random generators; `None` draws anew at each call.
        temperature: divides the logits before the draw.

    Raises:
        ValueError: if k is not a whole number of at least 1, or is larger than the vocabulary.
    """

    def __init__(self, k: int = 5, seed: int | None = None, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature, seed=seed)
        self.k = whole_number("k", k)

    def check_vocabulary(self, size: int) -> None:
        """Raises `ValueError` if k is larger than the vocabulary."""
        within_vocabulary("k", self.k, size)

    def sample(
        self, logits: NDArray[np.float32], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """Draws from the softmax over each row's k largest logits."""
        self.check_vocabulary(logits.shape[-1])
        picks = [self._draw(row, g) for row, g in zip(logits, generators, strict=True)]
        return np.array(picks, np.int64)

    def sample_best(
        self, best: BestLogits, generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64] | None:
        """As `sample`; `None` where k is not below the number of the best logits, or ties reach it."""
        self.check_vocabulary(best.vocabulary)
        if self.k > _FEW:
            return None
        rows = list(zip(best.logits.tolist(), best.token_ids.tolist(), strict=True))
        kept = []  # of all rows, before the first draw
        for logits, ids in rows:
            places = largest_listed(logits, ids, self.k, best.complete)
            if places is None:
                return None
            kept.append(sorted(places, key=ids.__getitem__))  # the order in which `sample` draws
        picks = []
        for (logits, ids), places, generator in zip(rows, kept, generators, strict=True):
            drawn = draw_few([logits[i] for i in places], self.temperature, generator)
            picks.append(ids[places[drawn]])
        return np.array(picks, np.int64)

    def _draw(self, row: NDArray[np.float32], generator: np.random.Generator) -> int:
        top = largest_by_id(row, self.k)  # in the order of draws from the whole distribution
        logits = row[top]
        if len(top) <= _FEW:
            return int(top[draw_few(logits.tolist(), self.temperature, generator)])
        weights = exponentials(logits.astype(np.float64), self.temperature)
        return int(top[draw_one(weights, generator)])

    def get_config(self) -> dict[str, Any]:
        return {"k": self.k, **super().get_config()}

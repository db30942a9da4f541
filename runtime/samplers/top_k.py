"""Top-k sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.samplers.sampler import Sampler, draw, softmax


class TopKSampler(Sampler):
    """Draws among the k most probable tokens (Fan et al., 2018, https://arxiv.org/abs/1805.04833).

    Args:
        k: how many tokens to draw among.
        seed: of the random generators; `None` draws anew at each call.
        temperature: divides the logits before the draw.

    Raises:
        ValueError: if k is not a whole number of at least 1, or is larger than the vocabulary.
    """

    def __init__(self, k: int = 5, seed: int | None = None, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature, seed=seed)
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
            raise ValueError(f"k must be a whole number of at least 1, got {k!r}")
        self.k = int(k)

    def sample(
        self, logits: NDArray[np.float32], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """Draws from the softmax over each row's k largest logits."""
        vocabulary = logits.shape[-1]
        if self.k > vocabulary:
            raise ValueError(f"k={self.k} is larger than the vocabulary of {vocabulary} tokens")
        top = np.argpartition(logits, vocabulary - self.k, axis=-1)[:, -self.k :]
        # A fixed order of the candidates: argpartition's own depends on the rest of the row.
        top = np.sort(top, axis=-1)
        kept = np.take_along_axis(logits, top, axis=-1).astype(np.float64)
        choice = draw(softmax(kept / self.temperature), generators)
        return np.take_along_axis(top, choice[:, None], axis=-1)[:, 0]

    def get_config(self) -> dict[str, Any]:
        return {"k": self.k, **super().get_config()}

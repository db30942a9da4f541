"""Random sampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.probabilities import draw_one, exponentials
from runtime.samplers.sampler import Sampler


class RandomSampler(Sampler):
    """Draws from the whole distribution, each token by its probability.

    Also known as ancestral sampling; Holtzman et al. (2019, https://arxiv.org/abs/1904.09751) show
    what text it makes and why to cut the distribution's tail off.

    Args:
        seed: of the random generators; `None` draws anew at each call.
        temperature: divides the logits before the draw.
    """

    def __init__(self, seed: int | None = None, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature, seed=seed)

    def sample(
        self, logits: NDArray[np.float32], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """Draws from the softmax over each row."""
        picks = [
            draw_one(exponentials(row, self.temperature, in_place=True), generator)
            for row, generator in zip(logits, generators, strict=True)
        ]
        return np.array(picks, np.int64)

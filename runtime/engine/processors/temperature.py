"""Distributions made flatter or sharper."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.arguments import check_factor
from runtime.engine.processors.processor import Processor, TokenIds


class Temperature(Processor):
    """Divides the logits by a temperature; follows transformers' `TemperatureLogitsWarper`.

    Logits that float32 does not hold become infinite: samplers' own temperature, which is applied to
    differences from the largest logit, has no such limit.

    Args:
        temperature: above 1 flattens the distribution, below 1 sharpens it.

    Raises:
        ValueError: if it is not a number above 0 that float32 holds.
    """

    def __init__(self, temperature: object) -> None:
        self._temperature = check_factor("temperature", temperature)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Divides the logits."""
        logits /= self._temperature

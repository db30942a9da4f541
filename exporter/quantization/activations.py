"""What calibration finds out about the inputs of a model's dense layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ActivationStatistics:
    """The values that each channel of a dense layer's input took; float32 [channels] all three.

    Attributes:
        minimum, maximum: the least and the greatest.
        mean_square: the mean of their squares, which says how much an error in the weights that the
            channel is multiplied with counts.
    """

    minimum: np.ndarray
    maximum: np.ndarray
    mean_square: np.ndarray

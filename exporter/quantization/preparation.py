"""Before weights are quantized: calibration on a text, and smoothing of what it finds."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from exporter.progress import Progress
from exporter.quantization.calibration import calibrate
from exporter.quantization.recipes import UNQUANTIZED, Activations
from exporter.quantization.smoothing import SmoothedWeights, smoothing_factors
from exporter.weight_names import head_table
from exporter.weights import CountedWeights, WeightSource, float_bytes
from graphs.contract import ModelConfig
from graphs.quantization import Scheme


def prepare_weights(
    config: ModelConfig,
    source: WeightSource,
    schemes: Collection[Scheme],
    token_ids: np.ndarray | None,
    progress: Progress,
) -> tuple[WeightSource, Activations]:
    """The weights to quantize and what is known of the activations they are multiplied with.

    Args:
        config: sizes and switches of the model.
        source: its weights.
        schemes: what they are to be stored as.
        token_ids: to calibrate with, int [rows, sequence]; `None` where nothing is quantized.
        progress: shows the calibration.
    """
    if token_ids is None:
        return source, UNQUANTIZED
    statistics = calibrate(config, source, token_ids, progress)
    progress.phase("Smoothing", float_bytes(source, statistics))
    factors = smoothing_factors(config, CountedWeights(source, progress), statistics)
    if all(scheme.tables != "int8" for scheme in schemes):
        factors.pop(head_table(config), None)
    return SmoothedWeights(source, factors, config), Activations(statistics, factors)

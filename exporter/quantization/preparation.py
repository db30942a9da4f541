"""Before weights are quantized: calibration on a text, and smoothing of what it finds."""

from __future__ import annotations

from collections.abc import Collection

from exporter.layer_walk import head_table
from exporter.progress import Progress
from exporter.quantization.calibration import calibrate, calibration_tokens
from exporter.quantization.recipes import UNQUANTIZED, Activations
from exporter.quantization.smoothing import SmoothedWeights, smoothing_factors
from exporter.weights import WeightSource
from graphs.contract import ModelConfig
from graphs.quantization import Scheme
from runtime.tokenizer import Tokenizer


def prepare_weights(
    config: ModelConfig,
    source: WeightSource,
    schemes: Collection[Scheme],
    tokenizer: Tokenizer | None,
    text: str | None,
    progress: Progress,
) -> tuple[WeightSource, Activations]:
    """The weights to quantize and what is known of the activations they are multiplied with.

    Args:
        config: sizes and switches of the model.
        source: its weights.
        schemes: what they are to be stored as.
        tokenizer: of the model, for the text.
        text: to calibrate with; by default one that comes with the package.
        progress: shows the calibration.

    Raises:
        ExportError: if the text is too short.
    """
    if not any(scheme.quantized for scheme in schemes):
        return source, UNQUANTIZED
    token_ids = calibration_tokens(tokenizer, text, config)
    statistics = calibrate(config, source, token_ids, progress)
    progress.phase("Smoothing")
    factors = smoothing_factors(config, source, statistics)
    if all(scheme.tables != "int8" for scheme in schemes):
        factors.pop(head_table(config), None)
    return SmoothedWeights(source, factors, config), Activations(statistics, factors)

"""SmoothQuant: scales move from activations with outliers into the weights they are multiplied with.

Follows "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"
(https://arxiv.org/abs/2211.10438). Channel j of a dense layer's input is divided by s_j and row j of
its kernel multiplied by it, which changes no result. What makes the input takes the division, so that
it costs nothing: a norm's scale and offset, or the columns and bias of the dense layer before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from exporter.quantization.activations import ActivationStatistics
from exporter.weight_names import head_table
from exporter.weights import WeightSource
from graphs.contract import ModelConfig

LARGEST_CODE = 255  # of an activation
FLOOR = 1e-2  # least magnitude of a channel, of the mean channel's: calibration may never have seen it


@dataclass(frozen=True)
class _Maker:
    """A weight whose last axis, from `start` on, makes the channels of an activation."""

    name: str
    start: int = 0


def smoothing_factors(
    config: ModelConfig,
    source: WeightSource,
    statistics: Mapping[str, ActivationStatistics],
    strength: float = 0.5,
) -> dict[str, np.ndarray]:
    """What divides each channel of every dense input for which something can take the division.

    Args:
        config: sizes and switches of the model.
        source: its weights.
        statistics: of the inputs, by the weight that each is multiplied with.
        strength: how much of an activation's range moves into the weights: 0 < strength <= 1.

    Returns:
        Factors float32 [channels], all above 0, by the same names.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength!r}")
    factors = {}
    for name in _makers(config):
        largest = np.maximum(statistics[name].maximum, -statistics[name].minimum)
        inputs = _above_zero(largest) ** strength
        weights = _above_zero(_largest_weights(config, source, name)) ** (1 - strength)
        factors[name] = (inputs / weights).astype(np.float32)
    return factors


def activation_scale(
    statistics: ActivationStatistics, factors: np.ndarray | None = None
) -> tuple[np.float32, np.uint8]:
    """Scale and zero point with which a whole activation is quantized to uint8.

    An activation that is never negative, as after ReLU, gets zero point 0.

    Args:
        statistics: of the activation before it is divided.
        factors: float32 [channels], what divides its channels; by default nothing does.
    """
    divisors = np.float32(1) if factors is None else factors
    low = min(0.0, float((statistics.minimum / divisors).min()))
    high = max(0.0, float((statistics.maximum / divisors).max()))
    if high == low:
        return np.float32(1), np.uint8(0)
    scale = np.float32((high - low) / LARGEST_CODE)
    return scale, np.uint8(np.clip(round(-low / float(scale)), 0, LARGEST_CODE))


class SmoothedWeights:
    """The weights of another source with factors folded in; the same function, up to rounding.

    Only the head's table differs: its columns carry factors that nothing here divides by. Its inputs
    are to be divided by them, and where it is the token embedding, so are the rows that are looked up.
    """

    def __init__(
        self, source: WeightSource, factors: Mapping[str, np.ndarray], config: ModelConfig
    ) -> None:
        self._source = source
        self._rows = {name: f for name, f in factors.items() if name != head_table(config)}
        self._last_axis: dict[str, np.ndarray] = {}  # multipliers
        for name, factor in factors.items():
            if name == head_table(config):
                self._last_axis[name] = factor
            for maker in _makers(config)[name]:
                multiplier = np.ones(source.shapes[maker.name][-1], np.float32)
                multiplier[maker.start :] = 1 / factor
                self._last_axis[maker.name] = multiplier

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._source.shapes

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        rows, last_axis = self._rows.get(name), self._last_axis.get(name)
        start = 0
        for block in self._source.blocks(name):
            part = slice(start, start + len(block))
            start += len(block)
            if rows is not None:
                block = block * rows[part, None]  # a new one: the source's may be a live model's own
            if last_axis is not None:
                multiplier = last_axis[part] if block.ndim == 1 else last_axis
                block = np.multiply(block, multiplier, out=None if rows is None else block)
            yield block

    def close(self) -> None:
        """Closes the other source."""
        self._source.close()


def _makers(config: ModelConfig) -> dict[str, list[_Maker]]:
    """The weights that make each dense input, where dividing them divides the input exactly."""
    makers: dict[str, list[_Maker]] = {}
    norms_fold = config.norm_first and config.norm_affine
    for i in range(config.num_layers):
        layer = f"transformer_layer_{i}"
        if norms_fold:
            makers[f"{layer}/attention/qkv/kernel"] = _norm(f"{layer}/attention_norm")
            makers[f"{layer}/intermediate/kernel"] = _norm(f"{layer}/feed_forward_norm")
        values = 2 * config.hidden_dim  # attention adds values up, so it scales with their columns
        makers[f"{layer}/attention/output/kernel"] = _dense(config, f"{layer}/attention/qkv", values)
        if config.activation == "relu":  # the only one with f(x / s) = f(x) / s
            makers[f"{layer}/output/kernel"] = _dense(config, f"{layer}/intermediate")
    makers[head_table(config)] = []  # the graph divides: the last hidden states are an output too
    return makers


def _norm(name: str) -> list[_Maker]:
    return [_Maker(f"{name}/gamma"), _Maker(f"{name}/beta")]


def _dense(config: ModelConfig, name: str, start: int = 0) -> list[_Maker]:
    kernel = [_Maker(f"{name}/kernel", start)]
    return [*kernel, _Maker(f"{name}/bias", start)] if config.use_bias else kernel


def _largest_weights(config: ModelConfig, source: WeightSource, name: str) -> np.ndarray:
    """The largest magnitude of the weights that each channel is multiplied with, float32."""
    if name == head_table(config):
        return np.max([_largest(block, axis=0) for block in source.blocks(name)], axis=0)
    return np.concatenate([_largest(block, axis=1) for block in source.blocks(name)])


def _largest(block: np.ndarray, axis: int) -> np.ndarray:
    """The largest magnitude along an axis, without a second block for the magnitudes."""
    return np.maximum(block.max(axis=axis), -block.min(axis=axis))


def _above_zero(magnitudes: np.ndarray) -> np.ndarray:
    """Magnitudes with a floor, float64: neither they nor their quotients are to become 0."""
    magnitudes = magnitudes.astype(np.float64)
    return np.maximum(magnitudes, FLOOR * magnitudes.mean() or 1.0)

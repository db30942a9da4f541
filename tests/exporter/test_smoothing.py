"""SmoothQuant's factors and the weights that they are folded into."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from exporter import layer_walk
from exporter.progress import Progress
from exporter.quantization.calibration import ActivationStatistics, calibrate
from exporter.quantization.smoothing import (
    SmoothedWeights,
    activation_scale,
    smoothing_factors,
)
from exporter.weights import read_weight
from tests.exporter.conftest import TOY
from tests.exporter.quantization_helpers import DrawnWeights

QUIET = Progress(quiet=True)
LAYER = "transformer_layer_1"
QKV, ATTENTION_OUTPUT = f"{LAYER}/attention/qkv/kernel", f"{LAYER}/attention/output/kernel"
FC1, FC2 = f"{LAYER}/intermediate/kernel", f"{LAYER}/output/kernel"
TABLE = "embeddings/token_embedding/embeddings"
TOKENS = np.random.default_rng(1).integers(0, TOY.vocabulary_size, (3, 20))


class Divided:
    """Smoothed weights with the head's factors divided out again, as graphs do: an untied model's."""

    def __init__(self, source, config, factors):
        self._source = source
        self._head = layer_walk.head_table(config)
        self._factors = factors[self._head]

    @property
    def shapes(self):
        return {**self._source.shapes, "head/embeddings": self._source.shapes[self._head]}

    def blocks(self, name):
        blocks = self._source.blocks(self._head if name == "head/embeddings" else name)
        divided = name in (self._head, "head/embeddings")
        return (block / self._factors for block in blocks) if divided else blocks


def smoothed_logits(config, smoothed, factors):
    """Logits [rows, sequence, vocabulary] with the head's factors divided out."""
    untied = replace(config, tied_head=False)
    return layer_walk.logits(untied, Divided(smoothed, config, factors), TOKENS)


SWITCHES = {
    "opt": ({}, {"qkv", "output", "fc1", "fc2", "head"}),
    "untied": ({"tied_head": False}, {"qkv", "output", "fc1", "fc2", "head"}),
    "opt-350m": (
        {"norm_first": False, "final_norm": False, "embedding_dim": 16},
        {"output", "fc2", "head"},
    ),
    "projected": ({"embedding_dim": 16}, {"qkv", "output", "fc1", "fc2", "head"}),
    "galactica": ({"activation": "gelu", "use_bias": False, "norm_affine": False}, {"output", "head"}),
    "no final norm": ({"final_norm": False}, {"qkv", "output", "fc1", "fc2", "head"}),
}


@pytest.mark.parametrize(("switches", "sites"), SWITCHES.values(), ids=SWITCHES)
def test_folded_weights_are_the_same_function(switches, sites):
    config = replace(TOY, **switches)
    source = DrawnWeights(config, block_rows=7)
    statistics = calibrate(config, source, TOKENS, QUIET)
    factors = smoothing_factors(config, source, statistics)
    names = {"qkv": QKV, "output": ATTENTION_OUTPUT, "fc1": FC1, "fc2": FC2}
    names["head"] = layer_walk.head_table(config)
    assert {site for site, name in names.items() if name in factors} == sites
    assert len(factors) == config.num_layers * len(sites - {"head"}) + ("head" in sites)
    assert all(factor.dtype == np.float32 and (factor > 0).all() for factor in factors.values())
    wild = {  # far from 1, so that a folding left out shows
        name: np.exp(np.random.default_rng(i).normal(0, 1, len(factor))).astype(np.float32)
        for i, (name, factor) in enumerate(factors.items())
    }
    expected = layer_walk.logits(config, source, TOKENS)
    for chosen in (factors, wild):
        smoothed = SmoothedWeights(source, chosen, config)
        found = smoothed_logits(config, smoothed, chosen)
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_factors_divide_every_smoothed_input():
    source = DrawnWeights(TOY)
    statistics = calibrate(TOY, source, TOKENS, QUIET)
    factors = smoothing_factors(TOY, source, statistics)
    smoothed = SmoothedWeights(source, factors, TOY)
    lookup = Divided(smoothed, TOY, factors)
    after = calibrate(replace(TOY, tied_head=False), lookup, TOKENS, QUIET)
    head = after.pop("head/embeddings")  # left as it was: the graph divides it
    np.testing.assert_allclose(head.maximum, statistics[TABLE].maximum, rtol=1e-4)
    assert after.keys() == factors.keys() - {TABLE}
    for name in after:
        factor = factors[name]
        np.testing.assert_allclose(after[name].maximum, statistics[name].maximum / factor, rtol=1e-4)
        np.testing.assert_allclose(
            after[name].mean_square, statistics[name].mean_square / factor**2, rtol=1e-4
        )


def test_factor_is_the_formula_of_the_paper():
    source = DrawnWeights(TOY)
    channels = np.arange(1, TOY.hidden_dim + 1, dtype=np.float32)
    statistics = dict(calibrate(TOY, source, TOKENS, QUIET))
    statistics[QKV] = ActivationStatistics(-3 * channels, channels, channels)
    for strength in (0.3, 1.0):
        factors = smoothing_factors(TOY, source, statistics, strength)
        largest = np.abs(read_weight(source, QKV)).max(axis=1)
        np.testing.assert_allclose(
            factors[QKV], (3 * channels) ** strength / largest ** (1 - strength), rtol=1e-5
        )
    largest = np.abs(read_weight(source, TABLE)).max(axis=0)
    inputs = np.maximum(statistics[TABLE].maximum, -statistics[TABLE].minimum)
    np.testing.assert_allclose(factors[TABLE], inputs, rtol=1e-5)


def test_silent_channels_get_factors_above_zero():
    source = DrawnWeights(TOY)
    source.values[FC2][3] = 0.0
    statistics = dict(calibrate(TOY, source, TOKENS, QUIET))
    silent = statistics[FC2].maximum.copy()
    silent[5] = 0.0
    statistics[FC2] = replace(statistics[FC2], maximum=silent, minimum=np.zeros_like(silent))
    statistics[FC1] = ActivationStatistics(*np.zeros((3, TOY.hidden_dim), np.float32))
    factors = smoothing_factors(TOY, source, statistics)
    for name in (FC1, FC2):
        assert np.isfinite(factors[name]).all()
        assert (factors[name] > 0).all()
    # A hundredth of the mean channel stands for a channel that was never seen.
    floor = 0.01 * silent.astype(np.float64).mean()
    largest = np.abs(source.values[FC2]).max(axis=1)
    np.testing.assert_allclose(factors[FC2][5], np.sqrt(floor / largest[5]), rtol=1e-5)


@pytest.mark.parametrize("strength", [0, -0.5, 1.5])
def test_strength_out_of_range(strength):
    with pytest.raises(ValueError, match=f"above 0 and at most 1, got {strength}"):
        smoothing_factors(TOY, DrawnWeights(TOY), {}, strength)


def statistics_of(minimum, maximum):
    low, high = np.array(minimum, np.float32), np.array(maximum, np.float32)
    return ActivationStatistics(low, high, high**2)


def test_activation_scale_spans_the_divided_range():
    scale, zero_point = activation_scale(statistics_of([-4, -1], [2, 50]), np.array([2, 10], "f"))
    assert (scale.dtype, zero_point.dtype) == (np.float32, np.uint8)
    assert scale == np.float32(7 / 255)  # -2 to 5
    assert zero_point == 73  # 2 / 7 of 255 is 72.86


def test_activation_scale_always_holds_zero():
    assert activation_scale(statistics_of([0, 0.5], [1, 51])) == (np.float32(0.2), 0)
    assert activation_scale(statistics_of([-51, -1], [-2, -0.5])) == (np.float32(0.2), 255)
    assert activation_scale(statistics_of([0, 0], [0, 0])) == (1, 0)


def test_relu_gets_zero_point_0():
    source = DrawnWeights(TOY)
    statistics = calibrate(TOY, source, TOKENS, QUIET)
    factors = smoothing_factors(TOY, source, statistics)
    assert activation_scale(statistics[FC2], factors[FC2])[1] == 0
    assert activation_scale(statistics[FC1], factors[FC1])[1] > 0

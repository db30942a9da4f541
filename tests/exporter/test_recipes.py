"""What the weights file holds, tensor by tensor, and how each is made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from exporter.layer_walk import TOKEN_TABLE, head_table
from exporter.quantization import recipes
from exporter.quantization.calibration import ActivationStatistics
from exporter.quantization.recipes import UNQUANTIZED, Activations, plan_recipes
from graphs.contract import ModelConfig
from graphs.quantization import is_layer_matrix, phase_schemes
from tests.exporter.conftest import TOY
from tests.exporter.quantization_helpers import DrawnWeights
from tests.exporter.recipe_helpers import (
    EveryName,
    dequantized_blocks,
    made,
    stored_values,
)

MODELS = {
    "opt": TOY,
    "opt-350m": replace(TOY, embedding_dim=16, norm_first=False, final_norm=False),
    "galactica": replace(TOY, activation="gelu", use_bias=False, norm_affine=False),
    "untied": replace(TOY, tied_head=False),
}
POSITIONS = "embeddings/position_embedding/embeddings"
KERNEL = "transformer_layer_0/intermediate/kernel"
INT8, INT4 = (phase_schemes(precision).values() for precision in ("int8", "int4"))
MIXED = phase_schemes("int4", "int8").values()


def names(planned):
    return [tensor.name for recipe in planned for tensor in recipe.tensors]


@pytest.fixture(params=MODELS)
def config(request):
    return MODELS[request.param]


def test_only_what_is_needed_is_planned_in_the_order_of_the_model():
    source = DrawnWeights(TOY)
    assert plan_recipes(TOY, source, set()) == []
    everything = set(source.shapes)
    assert names(plan_recipes(TOY, source, everything)) == list(source.shapes)
    # What is made together comes together: one of them is enough.
    planned = plan_recipes(TOY, source, {f"{KERNEL}.int8.scales", "layer_norm/beta"})
    assert names(planned) == [
        f"{KERNEL}.int8",
        f"{KERNEL}.int8.scales",
        f"{KERNEL}.input_scale",
        f"{KERNEL}.input_zero_point",
        "layer_norm/beta",
    ]


def test_every_name_is_planned_once(config):
    source = DrawnWeights(config)
    found = names(plan_recipes(config, source, EveryName()))
    assert len(found) == len(set(found))
    matrices = [name for name in source.shapes if is_layer_matrix(name)]
    assert len(matrices) == 8
    for matrix in matrices:
        forms = {f"{matrix}.{form}" for form in ("int8", "int4", "int8.fp16", "int4.fp16")}
        assert forms <= set(found)
    floats = [f"{name}{form}" for name in source.shapes for form in ("", ".fp16", ".bf16")]
    assert set(floats) <= set(found)
    # Projections and vectors are floats in all forms.
    for name in found:
        if not any(mark in name for mark in ("embedding", "head", "kernel")) or "project" in name:
            assert name in floats
    with_factors = [name for name in found if name.endswith(".factors")]
    assert with_factors == [f"{head_table(config)}.factors"]
    lookup_of_its_own = f"{TOKEN_TABLE}.int8.rows" in found
    assert lookup_of_its_own is not config.tied_head


def test_values_have_the_planned_dtypes_and_sizes(config):
    source = DrawnWeights(config, block_rows=50)
    for schemes in (INT8, INT4, MIXED):
        values = stored_values(config, source, schemes)
        assert all(np.isfinite(value).all() for value in values.values())
        assert values[f"{POSITIONS}.fp16"].dtype == np.float16


def test_values_do_not_depend_on_the_blocks_in_which_weights_are_read(config, monkeypatch):
    expected = stored_values(config, DrawnWeights(config), MIXED)
    monkeypatch.setattr(recipes, "OUTPUT_CHUNK", 7)
    found = stored_values(config, DrawnWeights(config, block_rows=7), MIXED)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if "input_scale" in name or "input_zero" in name or name.endswith((".factors", "gamma")):
            np.testing.assert_allclose(found[name], value, rtol=1e-5)
        elif value.dtype != np.float32:
            assert (found[name] != value).mean() < 0.01, name


def test_float32_is_stored_as_it_is(config):
    source = DrawnWeights(config, block_rows=50)
    for recipe in plan_recipes(config, source, set(source.shapes)):
        ((name, value),) = made(recipe).items()
        np.testing.assert_array_equal(value, source.values[name])
    (positions,) = plan_recipes(config, source, {f"{POSITIONS}.fp16"})
    expected = source.values[POSITIONS].astype(np.float16)
    np.testing.assert_array_equal(made(positions)[f"{POSITIONS}.fp16"], expected)


def test_int8_stands_for_the_smoothed_weights():
    source = DrawnWeights(TOY)
    values = stored_values(TOY, source, INT8)
    for name in filter(is_layer_matrix, source.shapes):
        smoothed = values[name]  # the float form of the same weight
        codes, scales = values[f"{name}.int8"], values[f"{name}.int8.scales"]
        assert np.abs(codes).max() == 127
        assert (np.abs(codes * scales - smoothed) <= scales / 2 * 1.0001).all()
        assert not np.allclose(smoothed, source.values[name])
    codes, scales = values[f"{TOKEN_TABLE}.int8"], values[f"{TOKEN_TABLE}.int8.scales"]
    rows = codes * scales[:, None] * values[f"{TOKEN_TABLE}.factors"]
    error = np.abs(rows - source.values[TOKEN_TABLE])  # the factors take the smoothing back
    assert (error <= scales[:, None] / 2 * values[f"{TOKEN_TABLE}.factors"] * 1.0001).all()


def test_int8_of_weights_that_codes_hold_is_exact():
    source = DrawnWeights(replace(TOY, tied_head=False))
    generator = np.random.default_rng(3)
    for name in (KERNEL, "head/embeddings", TOKEN_TABLE):
        codes = generator.integers(-127, 128, source.values[name].shape)
        codes[(0,) if name == KERNEL else (slice(None), 0)] = 127
        source.values[name] = (codes * np.float32(0.125)).astype(np.float32)
    statistics = ActivationStatistics(*np.array([[-1.0], [1.55], [0.5]], np.float32))
    factors = {"head/embeddings": np.ones(32, np.float32)}
    activations = Activations({KERNEL: statistics, "head/embeddings": statistics}, factors)
    config = replace(TOY, tied_head=False)
    wanted = {f"{KERNEL}.int8", "head/embeddings.int8", f"{TOKEN_TABLE}.int8.rows"}
    values = {}
    for recipe in plan_recipes(config, source, wanted, activations):
        values |= made(recipe)
    for name, codes in ((KERNEL, ".int8"), ("head/embeddings", ".int8"), (TOKEN_TABLE, ".int8.rows")):
        scales = values[f"{name}{codes}.scales"]
        scales = scales[:, None] if name == "head/embeddings" else scales
        np.testing.assert_array_equal(values[f"{name}{codes}"] * scales, source.values[name])
    assert values[f"{KERNEL}.input_scale"] == np.float32(0.01)
    assert values["head/embeddings.input_zero_point"] == 100


@pytest.mark.parametrize("schemes", [INT4, MIXED], ids=["int4", "int8 layers too"])
def test_int4_stands_for_the_smoothed_weights(schemes):
    source = DrawnWeights(TOY)
    values = stored_values(TOY, source, schemes)
    for name in [*filter(is_layer_matrix, source.shapes), TOKEN_TABLE]:
        smoothed = values[name]  # the float form of the same weight
        assert np.array_equal(smoothed, source.values[name]) is (name == TOKEN_TABLE)
        rows = smoothed if name == TOKEN_TABLE else smoothed.T
        found = dequantized_blocks(values, name)
        assert found.shape == rows.shape
        assert np.abs(found - rows).max() < rows.std()
        assert np.square(found - rows).mean() < 0.01 * rows.var()
    gamma = "transformer_layer_1/attention_norm/gamma"
    assert not np.allclose(values[gamma], source.values[gamma])


@pytest.mark.parametrize("sizes", [{"intermediate_dim": 40}, {"hidden_dim": 24}, {"embedding_dim": 8}])
def test_widths_that_int4_does_not_take_have_the_other_forms(sizes):
    config = replace(TOY, **sizes)
    source = DrawnWeights(config)
    found = names(plan_recipes(config, source, EveryName()))
    assert set(source.shapes) <= set(found)
    assert f"{KERNEL}.int8" in found
    assert not [name for name in found if "int4" in name]


# === Activations ===


def test_nothing_is_known_of_activations_that_were_not_observed():
    assert UNQUANTIZED.importance(KERNEL) is None
    with pytest.raises(KeyError):
        UNQUANTIZED.scale(KERNEL)


def test_smoothing_divides_what_is_known_of_an_activation():
    low, high = np.array([-4, -1], np.float32), np.array([2, 50], np.float32)
    statistics = {KERNEL: ActivationStatistics(low, high, np.array([1, 100], np.float32))}
    plain = Activations(statistics, {})
    np.testing.assert_array_equal(plain.importance(KERNEL), [1, 100])
    assert plain.scale(KERNEL) == (np.float32(54 / 255), 19)
    smoothed = Activations(statistics, {KERNEL: np.array([2, 10], np.float32)})
    np.testing.assert_array_equal(smoothed.importance(KERNEL), [0.25, 1])
    assert smoothed.scale(KERNEL) == (np.float32(7 / 255), 73)


def test_importance_decides_which_weights_int4_rounds_well():
    config = ModelConfig(288, 1, 4, 32, 64, 64)
    source = DrawnWeights(config)
    importance = np.full(32, 1e-2, np.float32)
    importance[:4] = 100
    vector = np.zeros(32, np.float32)
    errors = []
    for known in ({}, {KERNEL: ActivationStatistics(vector, vector, importance)}):
        (recipe,) = plan_recipes(config, source, {f"{KERNEL}.int4"}, Activations(known, {}))
        found = dequantized_blocks(made(recipe), KERNEL)
        errors.append(np.square(found - source.values[KERNEL].T).mean(axis=0))
    assert errors[1][:4].mean() < 0.5 * errors[0][:4].mean()
    assert errors[1][4:].mean() > errors[0][4:].mean()


def test_the_head_s_statistics_are_those_of_its_table():
    for config in MODELS.values():
        values = stored_values(config, DrawnWeights(config), INT8)
        assert values[f"{head_table(config)}.input_scale"] > 0
        other = "head/embeddings" if config.tied_head else TOKEN_TABLE
        assert f"{other}.input_scale" not in values

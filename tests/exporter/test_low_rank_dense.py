"""`LowRankDense` by itself, without a backbone around it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from exporter.opt.lora import LowRankDense

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROWS, UNITS, RANK = 5, 6, 3
PARTS = ("query", "key", "value")
WIDTH = UNITS // len(PARTS)
INPUTS = np.random.default_rng(0).normal(size=(4, ROWS)).astype("float32")


def build(parts=PARTS, **options):
    """A layer with a random kernel and bias."""
    layer = LowRankDense(UNITS, parts, name="dense", **options)
    layer.build((None, ROWS))
    generator = np.random.default_rng(1)
    for variable in layer.weights:
        variable.assign(generator.normal(size=variable.shape))
    return layer


def randomize(layer):
    """Gives all pairs values; B begins as zero."""
    generator = np.random.default_rng(2)
    for a, b in layer.pairs.values():
        a.assign(generator.normal(size=a.shape))
        b.assign(generator.normal(size=b.shape))
    return layer


def expected(layer, scale):
    """Outputs by the definition, in float64: x W + b, and scale * x A B in each part's columns."""
    x = INPUTS.astype("float64")
    outputs = x @ np.asarray(layer.kernel, "float64")
    if layer.bias is not None:
        outputs = outputs + np.asarray(layer.bias, "float64")
    width = UNITS // len(layer.parts)
    for part, (a, b) in layer.pairs.items():
        start = layer.parts.index(part) * width
        outputs[:, start : start + width] += scale * (x @ np.asarray(a, "float64") @ np.asarray(b))
    return outputs


def identities(variables):
    return [id(variable) for variable in variables]


@pytest.mark.parametrize(
    ("parts", "given", "wanted"),
    [
        (PARTS, None, PARTS),
        (PARTS, ("query", "value"), ("query", "value")),
        (PARTS, ["key"], ("key",)),
        (("kernel",), None, ("kernel",)),
    ],
)
def test_each_part_gets_a_pair_of_its_shapes(parts, given, wanted):
    layer = build(parts)
    layer.enable_lora(RANK, parts=given)
    assert tuple(layer.pairs) == wanted
    for part, (a, b) in layer.pairs.items():
        assert (tuple(a.shape), tuple(b.shape)) == ((ROWS, RANK), (RANK, UNITS // len(parts)))
        assert (a.name, b.name) == (f"lora_{part}_a", f"lora_{part}_b")
        assert a.dtype == b.dtype == "float32"


@pytest.mark.parametrize("frozen", [False, True])
def test_the_pairs_are_trained_and_nothing_else(frozen):
    layer = build()
    base = [layer.kernel, layer.bias]
    layer.trainable = not frozen
    layer.enable_lora(RANK, parts=("query", "value"))
    pairs = [variable for pair in layer.pairs.values() for variable in pair]
    assert layer.trainable
    assert identities(layer.trainable_variables) == identities(pairs)
    assert identities(layer.non_trainable_variables) == identities(base)
    assert [variable.trainable for variable in base + pairs] == [False] * 2 + [True] * 4


def test_at_first_nothing_changes_and_only_b_learns():
    layer = build()
    before = np.asarray(layer(INPUTS))
    layer.enable_lora(RANK)
    np.testing.assert_array_equal(layer(INPUTS), before)
    for a, b in layer.pairs.values():
        assert np.count_nonzero(a) == ROWS * RANK
        assert np.count_nonzero(b) == 0
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer(INPUTS)))
    gradients = tape.gradient(loss, layer.trainable_variables)
    for of_a, of_b in zip(gradients[::2], gradients[1::2], strict=True):
        assert np.count_nonzero(of_a) == 0
        assert np.count_nonzero(of_b) == RANK * WIDTH


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (3, 1.0), (12, 4.0), (1.5, 0.5)])
@pytest.mark.parametrize("parts", [None, ("key", "value"), ("query",)])
def test_the_output_is_the_definition_s(alpha, scale, parts):
    layer = build()
    layer.enable_lora(RANK, alpha, parts=parts)
    assert layer.low_rank_scale == scale
    randomize(layer)
    np.testing.assert_allclose(layer(INPUTS), expected(layer, scale), rtol=1e-5, atol=1e-5)
    merged = INPUTS @ layer.merged_kernel() + np.asarray(layer.bias)
    np.testing.assert_allclose(merged, expected(layer, scale), rtol=1e-5, atol=1e-5)


def test_a_step_moves_the_pairs_alone():
    layer = build()
    layer.enable_lora(RANK, parts=("query",))
    kernel, bias = np.array(layer.kernel), np.array(layer.bias)
    model = keras.Sequential([layer])
    model.compile("sgd", "mse", run_eagerly=True)
    targets = np.ones((4, UNITS), "float32")
    first = model.train_on_batch(INPUTS, targets)
    second = model.test_on_batch(INPUTS, targets)
    assert second < first
    np.testing.assert_array_equal(layer.kernel, kernel)
    np.testing.assert_array_equal(layer.bias, bias)
    a, b = layer.pairs["query"]
    assert np.count_nonzero(b) == RANK * WIDTH
    assert a.shape == (ROWS, RANK)


def test_a_layer_without_bias():
    layer = build(use_bias=False)
    layer.enable_lora(RANK, 6)
    assert identities(layer.non_trainable_variables) == identities([layer.kernel])
    randomize(layer)
    np.testing.assert_allclose(layer(INPUTS), expected(layer, 2.0), rtol=1e-5, atol=1e-5)


def test_pairs_are_float32_in_a_narrow_layer():
    layer = build(dtype="bfloat16")
    layer.enable_lora(RANK)
    assert layer.kernel.dtype == "bfloat16"
    assert {v.dtype for v in layer.trainable_variables} == {"float32"}
    assert layer(INPUTS).dtype == "bfloat16"


def test_initializers_are_those_of_their_side():
    layer = build()
    layer.enable_lora(RANK, a_initializer="ones", b_initializer=keras.initializers.Constant(2.0))
    for a, b in layer.pairs.values():
        assert np.unique(a).tolist() == [1.0]
        assert np.unique(b).tolist() == [2.0]


def test_by_default_a_is_drawn_as_kernels_before_a_relu_are():
    """He's uniform distribution, as in Keras: within the root of 6 over the inputs."""
    keras.utils.set_random_seed(0)
    layer = LowRankDense(8)
    layer.build((None, 600))
    layer.enable_lora(300)
    values = np.asarray(layer.pairs["kernel"][0])
    assert 0.095 < np.abs(values).max() <= (6 / 600) ** 0.5
    assert abs(values.std() - (2 / 600) ** 0.5) < 3e-3


def test_afterwards_the_layer_takes_no_more_weights():
    layer = build()
    layer.enable_lora(RANK)
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        layer.add_weight(name="late", shape=(1,))


def test_lora_is_enabled_once():
    layer = build()
    layer.enable_lora(RANK, parts=("query",))
    pairs = dict(layer.pairs)
    with pytest.raises(ValueError, match="LoRA is already enabled on dense"):
        layer.enable_lora(RANK, parts=("value",))
    assert layer.pairs == pairs
    assert len(layer.weights) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"rank": 2.0}, "rank must be .* got 2.0"),
        ({"rank": 2, "lora_alpha": -1}, "alpha must be a positive number, got -1"),
        (
            {"rank": 2, "parts": ["kernel"]},
            r"parts must be some of query, key, value; got \['kernel'\]",
        ),
        ({"rank": 2, "parts": []}, r"parts must be some of query, key, value; got \[\]"),
    ],
)
def test_what_is_refused_changes_nothing(arguments, message):
    layer = build()
    with pytest.raises(ValueError, match=message):
        layer.enable_lora(**arguments)
    assert not layer.pairs
    assert identities(layer.trainable_variables) == identities([layer.kernel, layer.bias])


def test_a_layer_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match="has no kernel to adapt yet; build the layer first"):
        LowRankDense(UNITS).enable_lora(RANK)

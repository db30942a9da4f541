"""Keras's guides on mixed precision and reproducibility, with the OPT family in their models' place."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
from keras.src.backend.common import global_state

from exporter import OPTBackbone, OPTCausalLM
from exporter.tracing import build_weightless_backbone, trace
from graphs.contract import Phase
from graphs.passes import expected_counts, rewrite
from graphs.quantization import phase_schemes
from runtime import samplers
from tests.conformance.airports import difference
from tests.conformance.guide_models import SIZES, TEXTS, Family, tokens

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.usefixtures("keras_defaults"),
]

OURS = Family.of("exporter")
INPUTS = tokens()
PROMPTS = [" airplane", " at"]


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A preset that was saved in bfloat16."""
    folder = tmp_path_factory.mktemp("presets") / "bfloat16"
    OURS.model(dtype="bfloat16").save_to_preset(folder)
    return folder


# === Dtype policies ===


@pytest.mark.parametrize("name", ["mixed_bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_policy_that_was_set_holds_for_presets(preset, name):
    """As in keras-hub: whatever the preset was saved in."""
    keras.config.set_dtype_policy(name)
    policy = keras.config.dtype_policy()
    causal_lm = OPTCausalLM.from_preset(preset)
    for backbone in (
        OPTBackbone.from_preset(preset),
        OPTBackbone.from_preset(preset, load_weights=False, dtype=None),
        causal_lm.backbone,
        OPTBackbone(**SIZES),
    ):
        assert backbone.dtype_policy.name == name
        assert {v.dtype for v in backbone.weights} == {policy.variable_dtype}
        assert str(backbone(INPUTS).dtype.name) == policy.compute_dtype
    assert causal_lm.dtype_policy.name == name
    assert OPTBackbone.from_preset(preset, dtype="bfloat16").dtype_policy.name == "bfloat16"


@pytest.mark.reference
@pytest.mark.slow
def test_keras_hub_s_backbones_take_the_policy_that_is_set(tmp_path):
    theirs = Family.of("keras_hub")
    theirs.model(dtype="mixed_bfloat16").save_to_preset(str(tmp_path))
    for name in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(name)
        for models in (OURS.models, theirs.models):
            assert models.OPTBackbone.from_preset(str(tmp_path)).dtype_policy.name == name
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    "name", ["float16", *(pytest.param(n, marks=pytest.mark.slow) for n in ("bfloat16", "float64"))]
)
def test_models_work_with_any_floatx(preset, name):
    global_state.set_global_attribute("dtype_policy", None)  # as in a process that has set none
    keras.config.set_floatx(name)
    model = OPTCausalLM.from_preset(preset)
    assert model.dtype_policy.name == name
    model.compile(sampler="greedy", run_eagerly=True)
    # A row whose first token is padding sees nothing: a mask of minus infinity would give NaN.
    hidden = {**INPUTS, "padding_mask": np.array([[1] * 8, [0] * 3 + [1] * 5], "int32")}
    assert np.isfinite(np.asarray(model(hidden), "float32")).all()
    reference = OPTCausalLM.from_preset(preset, dtype="float32")
    assert difference(model(INPUTS), reference(INPUTS)) < 0.2
    assert np.isfinite(float(model.fit(TEXTS, verbose=0).history["loss"][0]))
    assert model.generate(" at", max_length=6).startswith(" at")


def test_what_is_traced_for_a_bundle_does_not_depend_on_keras_s_settings():
    keras.config.set_floatx("float16")
    keras.config.set_dtype_policy("mixed_float16")
    config = OPTBackbone(**SIZES).model_config
    program = trace(build_weightless_backbone(config), Phase.PREFILL)
    scheme = phase_schemes("fp32", None, "cpu")[Phase.PREFILL]
    assert rewrite(program, "cpu", scheme) == expected_counts(config, "cpu", scheme)
    assert {str(tensor.dtype) for tensor in program.model.graph.outputs} == {"FLOAT"}


@pytest.mark.parametrize(
    "name", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_a_functional_model_computes_in_the_policy_and_ends_in_float32(family, name):
    keras.config.set_dtype_policy(name)
    backbone = family.backbone()
    outputs = keras.layers.Dense(2, dtype="float32")(backbone.output)
    model = keras.Model(backbone.input, outputs)
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    assert backbone.output.dtype == name.removeprefix("mixed_")
    assert model(INPUTS).dtype == "float32"
    assert {v.dtype for v in model.weights} == {"float32"}
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (name == "mixed_float16")
    targets = np.zeros((2, 8, 2), "float32")
    losses = [float(model.train_on_batch(INPUTS, targets)) for _ in range(3)]
    assert losses[2] < losses[0]


# === Reproducibility ===


def write(model):
    return model.generate(PROMPTS, max_length=8)


@pytest.mark.parametrize("sampler", ["top_k", pytest.param("random", marks=pytest.mark.slow)])
def test_a_random_seed_makes_generation_repeatable(sampler):
    model = OURS.model()
    model.compile(sampler=sampler)
    texts = []
    for seed in (7, 7, 8):
        keras.utils.set_random_seed(seed)
        texts.append([write(model) for _ in range(3)])
    assert texts[0] == texts[1] != texts[2]
    assert len({tuple(text) for text in texts[0]}) > 1  # each call draws on


@pytest.mark.reference
@pytest.mark.slow
def test_keras_hub_draws_from_the_same_seed():
    texts = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        model = Family.of("keras_hub").model()
        model.compile(sampler="random", run_eagerly=True)
        texts.append(write(model))
    assert texts[0] == texts[1]


def test_a_seed_repeats_streams_and_results_too():
    model = OURS.model()
    model.compile(sampler="random")
    found = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        pieces = "".join(model.stream(" at", max_length=8))
        found.append((pieces, [r.token_ids for r in model.generate_results(PROMPTS, max_length=8)]))
    assert found[0] == found[1]


def test_a_sampler_s_own_seed_comes_first_and_the_sampler_stays_as_it_was():
    model = OURS.model()
    sampler = samplers.RandomSampler(seed=3)
    model.compile(sampler=sampler)
    keras.utils.set_random_seed(7)
    state = random.getstate()
    assert write(model) == write(model)
    assert random.getstate() == state  # nothing was drawn
    unseeded = samplers.RandomSampler()
    model.compile(sampler=unseeded)
    write(model)
    assert model.sampler is unseeded
    assert unseeded.seed is None


def test_a_random_seed_makes_training_repeatable(family):
    histories = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        model = family.models.OPTCausalLM(
            family.models.OPTBackbone(**SIZES, dropout=0.4), family.preprocessor()
        )
        model.compile(optimizer=keras.optimizers.Adam(0.01), run_eagerly=True)
        model.fit(TEXTS, batch_size=2, verbose=0)
        histories.append(np.asarray(model(INPUTS)))
    assert difference(*histories) == 0

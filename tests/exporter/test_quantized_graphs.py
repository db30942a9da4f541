"""Quantized graphs compute what float graphs do with the weights that the codes stand for.

What differs is that activations are quantized to 8 bits on the way.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from exporter.layer_walk import TOKEN_TABLE
from graphs.contract import Phase, past_names, present_names
from graphs.passes import rewrite
from graphs.quantization import Scheme, is_layer_matrix, phase_schemes
from tests.exporter.conftest import TOY
from tests.exporter.quantization_helpers import DrawnWeights
from tests.exporter.recipe_helpers import dequantized_blocks, read_all, stored_values
from tests.graphs.pass_helpers import (
    contract_inputs,
    readable,
    run_model,
    trace_model,
    with_views,
    with_weights,
)

MODELS = {
    "opt": TOY,
    "opt-350m": replace(TOY, embedding_dim=16, norm_first=False, final_norm=False),
    "galactica": replace(TOY, activation="gelu", use_bias=False, norm_affine=False),
    "untied, heads of 4": replace(TOY, num_heads=8, tied_head=False),
}
SCHEMES = {
    "int8": (Scheme("int8", "int8"), phase_schemes("int8")),
    "int4": (Scheme("int4", "int4"), phase_schemes("int4")),
    "int8 layers, int4 tables": (Scheme("int8", "int4"), phase_schemes("int4", "int8")),
}
# Ragged prompts and a token after each; a prompt and several tokens after it.
CALLS = [[[5, 3, 2], [1, 1, 1]], [[5], [4]]]
POSITIONS = "embeddings/position_embedding/embeddings"
TOLERANCE = 0.05  # root of the mean square, of the standard deviation


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """A model's traced graph of any number of tokens, and random weights."""
    config = MODELS[request.param]
    return trace_model(config, Phase.PREFILL), DrawnWeights(config, seed=4)


def dequantized(values, source, scheme, config):
    """Float weights that the stored values stand for."""
    weights = {name: values[name] for name in source.shapes}
    weights[POSITIONS] = values[f"{POSITIONS}.fp16"].astype(np.float32)
    head = TOKEN_TABLE if config.tied_head else "head/embeddings"
    for name in filter(is_layer_matrix, source.shapes):
        if scheme.layers == "int4":
            weights[name] = np.ascontiguousarray(dequantized_blocks(values, name).T)
        else:
            weights[name] = values[f"{name}.int8"] * values[f"{name}.int8.scales"]
    if scheme.tables == "int4":
        for name in {head, TOKEN_TABLE}:
            weights[name] = dequantized_blocks(values, name)
        return weights
    codes = values[f"{head}.int8"] * values[f"{head}.int8.scales"][:, None]
    weights[head] = codes * values[f"{head}.factors"]
    if not config.tied_head:
        codes = values[f"{TOKEN_TABLE}.int8.rows"]
        weights[TOKEN_TABLE] = codes * values[f"{TOKEN_TABLE}.int8.rows.scales"]
    return weights


@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_states_and_cache(model, scheme):
    traced, source = model
    config = traced.config
    stored_as, schemes = SCHEMES[scheme]
    values = stored_values(config, source, schemes.values())
    weights = dequantized(values, source, stored_as, config)
    assert all(weights[name].shape == shape for name, shape in source.shapes.items())
    plain, quantized = traced.program(), traced.program()
    rewrite(plain, "cpu")
    rewrite(quantized, "cpu", stored_as)
    used = {name for name, value in quantized.weights.items() if value.uses()}
    assert not [name for name in used if is_layer_matrix(name) or name == TOKEN_TABLE]
    bound = with_weights(ir.to_proto(quantized.model), with_views(quantized, values))
    unquantized = with_weights(ir.to_proto(plain.model), with_views(plain, weights))
    for prompts, more in CALLS:
        nothing = [0] * len(prompts)
        outputs = {}
        for past, new in ((nothing, prompts), (prompts, more)):
            inputs = contract_inputs(config, Phase.PREFILL, past, new)
            for layer in range(config.num_layers):  # the cache that the first call has left
                for old, now in zip(past_names(layer), present_names(layer), strict=True):
                    inputs[old] = outputs.get(now, inputs[old])
            outputs, found = run_model(unquantized, inputs), run_model(bound, inputs, exact=True)
            expected, found = readable(outputs, past, new), readable(found, past, new)
            assert list(expected) == list(found)
            for name, value in expected.items():
                error = np.sqrt(np.square(found[name] - value).mean())
                assert error <= TOLERANCE * value.std(), name


def test_quantized_weights_are_other_weights(model):
    """What keeps the comparison above from holding for weights that were never rounded."""
    traced, source = model
    values = stored_values(traced.config, source, phase_schemes("int4").values())
    weights = dequantized(values, source, Scheme("int4", "int4"), traced.config)
    for name, value in read_all(source).items():
        if is_layer_matrix(name) or ("embeddings" in name and "project" not in name):
            assert not np.allclose(weights[name], value, atol=1e-5), name

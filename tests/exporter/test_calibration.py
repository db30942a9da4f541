"""Calibration: the tokens, and the statistics of what enters every dense layer."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest

from exporter import layer_walk
from exporter.errors import ExportError
from exporter.model_weights import LiveWeights
from exporter.opt.keras_backend import keras
from exporter.progress import Progress
from exporter.quantization.calibration import calibrate, calibration_tokens
from exporter.weights import read_weight
from tests.exporter.conftest import TOY
from tests.exporter.quantization_helpers import DrawnWeights

TOKENS = np.random.default_rng(1).integers(0, TOY.vocabulary_size, (5, 16))
TABLE = "embeddings/token_embedding/embeddings"


# === Tokens ===


def test_default_text_fills_rows_that_begin_as_served(toy_tokenizer):
    tokens = calibration_tokens(toy_tokenizer, None, TOY)
    assert tokens.dtype == np.int64
    assert tokens.shape == (32, 63)  # of the toy's 64 positions, and of at most 2048 tokens
    assert (tokens[:, 0] == toy_tokenizer.start_token_id).all()
    assert toy_tokenizer.decode(tokens[0, 1:]).startswith("The ferry left the old harbour")
    assert "The police watched from the steps" in toy_tokenizer.decode(tokens[-1, 1:])


def test_given_text_is_used_whole_in_rows_of_one_length(toy_tokenizer):
    text = "".join(f"{i:03d}" for i in range(100))
    tokens = calibration_tokens(toy_tokenizer, text, TOY)
    assert tokens.shape == (5, 61)
    assert "".join(toy_tokenizer.decode(row[1:]) for row in tokens) == text


def test_rows_have_at_most_256_tokens(toy_tokenizer):
    tokens = calibration_tokens(toy_tokenizer, "x" * 600, replace(TOY, max_sequence_length=2048))
    assert tokens.shape == (3, 201)


def test_too_short_texts(toy_tokenizer):
    for text, count in (("", 0), ("x" * 63, 63)):
        with pytest.raises(ExportError, match=f"has {count} tokens; at least 64 are needed"):
            calibration_tokens(toy_tokenizer, text, TOY)
    assert calibration_tokens(toy_tokenizer, "x" * 64, TOY).shape == (2, 33)


def test_without_a_tokenizer():
    tokens = calibration_tokens(None, None, TOY)
    assert tokens.shape == (16, 64)
    assert len(np.unique(tokens)) > 250
    assert tokens.max() < TOY.vocabulary_size
    with pytest.raises(ExportError, match="has no tokenizer, which a calibration text needs"):
        calibration_tokens(None, "text", TOY)


# === Statistics ===


def check(found, values):
    values = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
    assert {part.dtype for part in (found.minimum, found.maximum, found.mean_square)} == {
        np.dtype(np.float32)
    }
    np.testing.assert_allclose(found.minimum, values.min(axis=0), atol=2e-5)
    np.testing.assert_allclose(found.maximum, values.max(axis=0), atol=2e-5)
    np.testing.assert_allclose(found.mean_square, (values**2).mean(axis=0), rtol=1e-4)


def test_statistics_are_of_the_inputs_of_the_live_model(build_model):
    backbone = build_model().backbone
    inputs = {}
    for layer in backbone.transformer_layers:
        for dense in layer.dense_layers.values():
            dense.call = keep_input(inputs, dense)
    hidden = backbone({"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}, training=False)
    inputs[TABLE] = keras.ops.convert_to_numpy(hidden)
    found = calibrate(TOY, LiveWeights(backbone), TOKENS, Progress(quiet=True))
    assert found.keys() == inputs.keys()
    assert len(found) == 4 * TOY.num_layers + 1
    for name, values in inputs.items():
        check(found[name], values)
    assert found["transformer_layer_1/output/kernel"].minimum.min() == 0.0  # after ReLU


def keep_input(inputs, dense):
    call = dense.call

    def keep_and_call(x, **options):
        inputs[dense.kernel.path] = keras.ops.convert_to_numpy(x)
        return call(x, **options)

    return keep_and_call


def test_projections_and_an_untied_head():
    config = replace(TOY, embedding_dim=16, tied_head=False, norm_first=False, final_norm=False)
    source = DrawnWeights(config, block_rows=50)
    found = calibrate(config, source, TOKENS, Progress(quiet=True))
    extra = {"embeddings/project_in/kernel", "project_out/kernel", "head/embeddings"}
    assert extra < found.keys()
    assert len(found) == 4 * TOY.num_layers + 3
    check(found["embeddings/project_in/kernel"], read_weight(source, TABLE)[TOKENS])
    head = found["head/embeddings"]
    logits = layer_walk.logits(config, source, TOKENS)
    states = np.linalg.lstsq(read_weight(source, "head/embeddings"), logits.reshape(-1, 288).T)[0].T
    np.testing.assert_allclose(head.maximum, states.max(axis=0), rtol=1e-3, atol=1e-4)
    assert found["project_out/kernel"].maximum.shape == (TOY.hidden_dim,)


def test_every_layer_weight_is_read_once_and_one_at_a_time():
    read = []

    class Counted(DrawnWeights):
        def blocks(self, name):
            read.append(name)
            return super().blocks(name)

    calibrate(TOY, Counted(TOY), TOKENS, Progress(quiet=True))
    layers = [name for name in read if name.startswith("transformer_layer")]
    assert len(set(layers)) == len(layers) == 12 * TOY.num_layers


def test_progress_is_told_of_every_layer():
    stream = io.StringIO()
    progress = Progress(stream=stream)
    calibrate(TOY, DrawnWeights(TOY), TOKENS, progress)
    progress.close()
    assert re.search(r"Calibrating with 80 tokens: 100%", stream.getvalue())

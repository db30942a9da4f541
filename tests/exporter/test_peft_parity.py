"""Adapters that `peft` wrote: merged here they are peft's own model, in logits and in greedy tokens."""

from __future__ import annotations

import contextlib
import shutil

import numpy as np
import pytest

from exporter import OPTCausalLM, export_bundle, layer_walk
from exporter.presets.adapted import merged, open_preset
from exporter.weights import CheckpointWeights
from runtime import Generator
from tests.exporter.peft_adapters import (
    CONFIGURATIONS,
    MERGED_OTHERWISE,
    load_with_peft,
    torch_logits,
    write_adapter,
)

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

PROMPTS, PROMPT, NEW = 20, 6, 10
QUICK = ("all-linear", "patterns", "token table", "head and tables by dora", "modules to save")
NOISE = 5e-5  # of logits with a standard deviation of about two, in float32 in two orders


@pytest.fixture(scope="module")
def prompts():
    """Token ids [20, 6]."""
    return np.random.default_rng(3).integers(4, 288, (PROMPTS, PROMPT))


@pytest.fixture(scope="module")
def written(hf_folder, tmp_path_factory):
    """The folder of the adapter of a configuration."""
    place, done = tmp_path_factory.mktemp("peft"), {}

    def write(name):
        if name not in done:
            folder = place / name
            done[name] = write_adapter(hf_folder, folder, **CONFIGURATIONS[name])
        return done[name]

    return write


def our_logits(base, adapters):
    """Logits of the merged weights by Keras's layers, as a function of token ids."""
    preset = open_preset(base, adapters)

    def logits(token_ids):
        with contextlib.closing(merged(CheckpointWeights(preset), preset)) as source:
            return layer_walk.logits(preset.config, source, np.asarray(token_ids))

    return logits


def greedy(model, prompts):
    """Prompts [rows, length] with NEW tokens each, by whole passes of a torch model."""
    rows = np.array(prompts)
    for _ in range(NEW):
        best = torch_logits(model, rows)[:, -1].argmax(axis=-1)
        rows = np.concatenate([rows, best[:, None]], axis=1)
    return rows


def assert_same(found, expected, tokens):
    """Logits [rows, length, vocabulary] of the same rows, of which each token is the greedy one."""
    difference = np.abs(found - expected).max()
    print(f"largest logit difference {difference:.1e}")
    assert difference < NOISE
    np.testing.assert_array_equal(found[:, PROMPT - 1 : -1].argmax(axis=-1), tokens[:, PROMPT:])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CONFIGURATIONS]
)
def test_merged_weights_are_peft_s_model(name, written, hf_folder, hf_model, prompts):
    model = load_with_peft(hf_folder, written(name))
    tokens = greedy(model, prompts)
    expected, found = torch_logits(model, tokens), our_logits(hf_folder, [written(name)])(tokens)
    assert_same(found, expected, tokens)
    assert np.abs(torch_logits(hf_model, tokens) - expected).max() > 0.1  # the adapter does something
    by_peft = torch_logits(model.merge_and_unload(), tokens)
    assert (np.abs(found - by_peft).max() < NOISE) == (name not in MERGED_OTHERWISE)


@pytest.mark.parametrize("weights", [(0.5, 1.0), (1.0, -0.7), (2.0, 0.25)])
def test_several_adapters_are_added_as_peft_s_cat_does(written, hf_folder, prompts, weights):
    folders = [written("two projections"), written("all-linear")]
    model = load_with_peft(hf_folder, *folders)
    model.add_weighted_adapter(["0", "1"], list(weights), "sum", combination_type="cat")
    model.set_adapter("sum")
    ours = our_logits(hf_folder, list(zip(folders, weights, strict=True)))
    tokens = greedy(model, prompts)
    assert_same(ours(tokens), torch_logits(model, tokens), tokens)


@pytest.mark.parametrize(
    "name", ["patterns", pytest.param("head and tables by dora", marks=pytest.mark.slow)]
)
def test_bundles_of_merged_weights_give_peft_s_tokens(
    name, written, hf_folder, prompts, tmp_path, quick_tracing
):
    folder = written(name)
    summary = export_bundle(hf_folder, tmp_path / "b", adapters=[folder])
    assert summary.comparison.difference < 1e-3  # verified against Keras's logits of the merged weights
    assert summary.adapters == (f"{folder} (peft), weight 1",)
    model = load_with_peft(hf_folder, folder)
    expected = greedy(model, prompts)
    generator = Generator.from_bundle(tmp_path / "b", threads=1)
    generator.compile(sampler="greedy")
    inputs = {
        "token_ids": np.pad(prompts, ((0, 0), (0, NEW))),
        "padding_mask": np.pad(np.ones_like(prompts), ((0, 0), (0, NEW))),
    }
    found = generator.generate(inputs, stop_token_ids=())["token_ids"]
    np.testing.assert_array_equal(found, expected)


def test_a_resized_token_table_brings_its_size(hf_folder, tmp_path, prompts):
    import peft
    import transformers

    model = transformers.OPTForCausalLM.from_pretrained(hf_folder)
    model.resize_token_embeddings(291)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    preset = open_preset(hf_folder, [tmp_path / "a"])
    assert (preset.config.vocabulary_size, preset.config.tied_head) == (291, True)
    tokens = np.concatenate([prompts, np.full((PROMPTS, 1), 290)], axis=1)
    found = our_logits(hf_folder, [tmp_path / "a"])(tokens)
    assert np.abs(found - torch_logits(adapted.eval(), tokens)).max() < NOISE


def test_a_live_model_loads_what_peft_loads(written, hf_folder, prompts):
    """`from_preset` of a folder with weights and an adapter merges it, as transformers' does."""
    folder = written("two projections").parent / "both"
    shutil.copytree(hf_folder, folder)
    shutil.copytree(written("two projections"), folder, dirs_exist_ok=True)
    model = OPTCausalLM.from_preset(folder, preprocessor=None)
    inputs = {"token_ids": prompts, "padding_mask": np.ones_like(prompts)}
    expected = torch_logits(load_with_peft(hf_folder, written("two projections")), prompts)
    assert np.abs(np.asarray(model(inputs)) - expected).max() < NOISE

"""Toy models and preset folders that the exporter's tests share.

Weights are drawn with a standard deviation of 0.2 and biases and norm scales are random too: with
Keras's own initial values an error in a bias or a norm would not show.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import exporter  # noqa: F401  (sets Keras's backend before anything imports Keras)
from graphs.contract import ModelConfig

if importlib.util.find_spec("keras") is None:  # serve-time environments go without the exporter
    collect_ignore_glob = ["test_*.py"]

TOY = ModelConfig(
    vocabulary_size=288,  # a few rows more than there are tokens, as OPT has
    num_layers=2,
    num_heads=4,
    hidden_dim=32,
    intermediate_dim=64,
    max_sequence_length=64,
)
SEQUENCE_LENGTH = 32
WORDS = (" quick", " the", " fox", "import", " brown")


def _toy_tokenizer_data():
    from runtime.tokenization.tokenizer import byte_alphabet

    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for character in byte_alphabet():
        vocabulary[character] = len(vocabulary)
    merges = []
    for word in WORDS:
        word = word.replace(" ", "Ġ")
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
                vocabulary[word[:end]] = len(vocabulary)
    assert len(vocabulary) < TOY.vocabulary_size
    return vocabulary, merges


def _draw(generator, shape, is_scale):
    return (generator.normal(0.0, 0.2, shape) + (1.0 if is_scale else 0.0)).astype("float32")


def randomize_keras(backbone, seed=0):
    """Gives every variable of a Keras backbone, ours or keras-hub's, new values."""
    generator = np.random.default_rng(seed)
    for variable in backbone.weights:
        variable.assign(_draw(generator, variable.shape, variable.path.endswith("gamma")))


def randomize_torch(model, seed=0):
    """Gives every parameter of a transformers model new values."""
    import torch

    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = _draw(generator, tuple(parameter.shape), "norm.weight" in name)
            parameter.copy_(torch.from_numpy(values))


@pytest.fixture(scope="session")
def toy_config():
    """The sizes of all toy models."""
    return TOY


@pytest.fixture(scope="session")
def toy_vocabulary():
    """Token to id: four special tokens, all bytes, and a few words."""
    return _toy_tokenizer_data()[0]


@pytest.fixture(scope="session")
def toy_merges():
    """The merge rules of the toy vocabulary."""
    return _toy_tokenizer_data()[1]


@pytest.fixture(scope="session")
def toy_tokenizer(toy_vocabulary, toy_merges):
    """Our tokenizer over the toy vocabulary."""
    from exporter import OPTTokenizer

    return OPTTokenizer(vocabulary=toy_vocabulary, merges=toy_merges)


def _backbone_sizes():
    sizes = [field.name for field in fields(ModelConfig) if field.default is MISSING]
    return {name: getattr(TOY, name) for name in sizes}


@pytest.fixture(scope="session")
def backbone_sizes():
    """The constructor's arguments of a toy backbone, ours or keras-hub's."""
    return _backbone_sizes()


@pytest.fixture(scope="session")
def build_model(toy_tokenizer):
    """Builds a toy `OPTCausalLM` of our own with random weights."""

    def build(seed=0, dropout=0.0, preprocessor=True, sequence_length=SEQUENCE_LENGTH, dtype=None):
        from exporter import OPTBackbone, OPTCausalLM, OPTCausalLMPreprocessor

        backbone = OPTBackbone(**_backbone_sizes(), dropout=dropout, dtype=dtype)
        randomize_keras(backbone, seed)
        pre = OPTCausalLMPreprocessor(toy_tokenizer, sequence_length) if preprocessor else None
        return OPTCausalLM(backbone=backbone, preprocessor=pre, name="toy")

    return build


@pytest.fixture(scope="session")
def toy_model(build_model):
    """A toy model of our own; not to be trained or compiled anew."""
    return build_model()


@pytest.fixture(scope="session")
def toy_preset(toy_model, tmp_path_factory):
    """The preset folder that `toy_model` saves."""
    folder = tmp_path_factory.mktemp("presets") / "toy"
    toy_model.save_to_preset(folder)
    return folder


# === What keras-hub writes ===


@pytest.fixture(scope="session")
def keras_hub():
    """The module."""
    return importlib.import_module("keras_hub")


@pytest.fixture(scope="session")
def build_hub_model(keras_hub, toy_vocabulary, toy_merges):
    """Builds a toy keras-hub `OPTCausalLM` with random weights."""

    def build(seed=0, dropout=0.0, dtype=None):
        models = keras_hub.models
        tokenizer = models.OPTTokenizer(vocabulary=toy_vocabulary, merges=toy_merges)
        preprocessor = models.OPTCausalLMPreprocessor(tokenizer, sequence_length=SEQUENCE_LENGTH)
        backbone = models.OPTBackbone(**_backbone_sizes(), dropout=dropout, dtype=dtype)
        randomize_keras(backbone, seed)
        return models.OPTCausalLM(backbone=backbone, preprocessor=preprocessor)

    return build


@pytest.fixture(scope="session")
def hub_model(build_hub_model):
    """A toy keras-hub model; not to be trained."""
    return build_hub_model(seed=1)


@pytest.fixture(scope="session")
def hub_preset(hub_model, tmp_path_factory):
    """The preset folder that keras-hub saves of `hub_model`."""
    folder = tmp_path_factory.mktemp("presets") / "hub"
    hub_model.save_to_preset(str(folder))
    return folder


@pytest.fixture(scope="session")
def hub_sharded_preset(hub_model, tmp_path_factory):
    """The same in shards, of which a layer may be in two."""
    folder = tmp_path_factory.mktemp("presets") / "hub_sharded"
    hub_model.save_to_preset(str(folder), max_shard_size=0.00005)  # GB
    assert len(list(folder.glob("model_*.weights.h5"))) > 2
    assert not (folder / "model.weights.h5").exists()
    return folder


# === What transformers writes ===


@pytest.fixture(scope="session")
def transformers():
    """The module."""
    return importlib.import_module("transformers")


@pytest.fixture(scope="session")
def hf_model(transformers):
    """A toy transformers model."""
    config = transformers.OPTConfig(
        vocab_size=TOY.vocabulary_size,
        hidden_size=TOY.hidden_dim,
        num_hidden_layers=TOY.num_layers,
        ffn_dim=TOY.intermediate_dim,
        num_attention_heads=TOY.num_heads,
        max_position_embeddings=TOY.max_sequence_length,
        word_embed_proj_dim=TOY.hidden_dim,
    )
    model = transformers.OPTForCausalLM(config).eval()
    randomize_torch(model, seed=2)
    return model


def _save_hf(model, folder, vocabulary, merges, **options):
    model.save_pretrained(folder, **options)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *merges, ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def hf_folder(hf_model, toy_vocabulary, toy_merges, tmp_path_factory):
    """The folder that transformers saves of `hf_model`, with a slow tokenizer's files beside it."""
    folder = tmp_path_factory.mktemp("presets") / "hf"
    return _save_hf(hf_model, folder, toy_vocabulary, toy_merges)


@pytest.fixture(scope="session")
def hf_sharded_folder(hf_model, toy_vocabulary, toy_merges, tmp_path_factory):
    """The same in shards."""
    folder = tmp_path_factory.mktemp("presets") / "hf_sharded"
    _save_hf(hf_model, folder, toy_vocabulary, toy_merges, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="session")
def hf_logits(hf_model):
    """The transformers model's logits as a function of ids and mask."""

    def logits(token_ids, padding_mask):
        import torch

        with torch.no_grad():
            answer = hf_model(
                input_ids=torch.from_numpy(np.asarray(token_ids, "int64")),
                attention_mask=torch.from_numpy(np.asarray(padding_mask, "int64")),
            )
        return answer.logits.numpy()

    return logits


# === Folders without the reference implementations ===


def write_hf_weights(folder, config, seed=3):
    """Writes a Hugging Face folder of random tensors by hand; returns them by name."""
    from safetensors.numpy import save_file

    from exporter.checkpoints.formats import HUGGING_FACE
    from exporter.checkpoints.weight_map import bind_names
    from exporter.presets.hugging_face_config import write_hugging_face_config

    generator = np.random.default_rng(seed)
    tensors = {
        source.name: _draw(generator, source.shape, source.name.endswith("norm.weight"))
        for target in bind_names(HUGGING_FACE, config)
        for source in target.sources
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(Path(folder) / "model.safetensors"))
    values = write_hugging_face_config(config, "float32")
    Path(folder, "config.json").write_text(json.dumps(values), encoding="utf-8")
    return tensors


@pytest.fixture
def plain_hf_folder(tmp_path):
    """A Hugging Face folder without a tokenizer, written without transformers."""
    folder = tmp_path / "plain_hf"
    write_hf_weights(folder, TOY)
    return folder


# === Tokens ===


@pytest.fixture(scope="session")
def padded_tokens():
    """Token ids and padding mask [3, 20] of rows of 20, 13 and 3 tokens."""
    token_ids = np.random.default_rng(5).integers(0, TOY.vocabulary_size, (3, 20)).astype("int32")
    padding_mask = (np.arange(20) < np.array([[20], [13], [3]])).astype("int32")
    return {"token_ids": token_ids, "padding_mask": padding_mask}


def greedy_rows(logits, prompts, length):
    """Prompts continued greedily to `length` tokens each, by whole passes and no cache.

    Args:
        logits: function from token ids and padding mask to logits [rows, length, vocabulary].
        prompts: token ids of each row.
        length: of each row in the end.
    """
    token_ids = np.ones((len(prompts), length), "int32")
    lengths = np.array([len(prompt) for prompt in prompts])
    for row, prompt in zip(token_ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    while lengths.min() < length:
        mask = (np.arange(length) < lengths[:, None]).astype("int32")
        found = np.asarray(logits(token_ids, mask))
        for i in np.flatnonzero(lengths < length):
            token_ids[i, lengths[i]] = np.argmax(found[i, lengths[i] - 1])
        lengths = np.minimum(lengths + 1, length)
    return token_ids.tolist()


@pytest.fixture(scope="session")
def greedy():
    """`greedy_rows` by a Keras model: the slow, plain way to decode, to compare with."""

    def rows(model, prompts, length):
        def logits(token_ids, padding_mask):
            return model({"token_ids": token_ids, "padding_mask": padding_mask}, training=False)

        return greedy_rows(logits, prompts, length)

    return rows


# === Quick exports ===


@pytest.fixture(scope="module")
def quick_tracing():
    """Exports of one size trace once, in whichever process; see `tests.traced_graphs`."""
    from exporter import export
    from tests.traced_graphs import traced_program

    def trace(backbone, phase):
        return traced_program(backbone.model_config, phase)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace", trace)
        yield


@pytest.fixture(scope="module")
def toy_bundle_of_ours(quick_tracing, toy_preset, tmp_path_factory):
    """A bundle of the preset that our own model saved, made by the command; not to be altered."""
    from tests.exporter.export_helpers import run

    folder = tmp_path_factory.mktemp("bundles") / "toy"
    code, out, err = run("--preset", toy_preset, "--output", folder)
    assert code == 0, err
    return SimpleNamespace(folder=folder, out=out, err=err)


@pytest.fixture
def old_bundle(toy_bundle_of_ours, tmp_path):
    """A bundle that stands where an export is to go."""
    return shutil.copytree(toy_bundle_of_ours.folder, tmp_path / "bundle")


@pytest.fixture
def nothing_is_traced(monkeypatch):
    """What cannot be done is said before there is work."""

    def never(*_):
        raise AssertionError("nothing may be traced")

    monkeypatch.setattr(importlib.import_module("exporter.export"), "trace", never)

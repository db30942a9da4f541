"""Saving presets: what is in the folder, what stays, what an interruption leaves, what loads again."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest

from exporter import CausalLM, OPTBackbone, OPTCausalLM, OPTCausalLMPreprocessor, OPTTokenizer
from exporter.checkpoints import writers
from exporter.errors import CheckpointError, PresetError
from exporter.presets import live_weights, saving
from exporter.presets.table import BUILTIN_PRESETS

TINY_SHARD = 0.00003  # GB
CLASSES = (CausalLM, OPTCausalLM, OPTBackbone, OPTTokenizer, OPTCausalLMPreprocessor)
MODEL_FILES = {"config.json", "metadata.json", "model.weights.h5"}
TOKENIZER_FILES = {"tokenizer.json", "assets/tokenizer/vocabulary.json", "assets/tokenizer/merges.txt"}


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


def values(backbone):
    return [np.asarray(v.numpy()) for v in backbone.weights]


def assert_same_values(found, expected):
    for one, other in zip(values(found), values(expected), strict=True):
        np.testing.assert_array_equal(one, other)


# === What is written ===


def test_each_part_writes_its_own_files(toy_model, tmp_path):
    toy_model.backbone.save_to_preset(tmp_path / "backbone")
    assert files(tmp_path / "backbone") == MODEL_FILES
    toy_model.preprocessor.tokenizer.save_to_preset(tmp_path / "tokenizer")
    assert files(tmp_path / "tokenizer") == TOKENIZER_FILES
    toy_model.preprocessor.save_to_preset(tmp_path / "preprocessor")
    assert files(tmp_path / "preprocessor") == TOKENIZER_FILES | {"preprocessor.json"}
    toy_model.save_to_preset(tmp_path / "all")
    expected = MODEL_FILES | TOKENIZER_FILES | {"preprocessor.json", "task.json"}
    assert files(tmp_path / "all") == expected


def test_parts_saved_one_by_one_make_a_preset(toy_model, tmp_path):
    toy_model.preprocessor.save_to_preset(tmp_path)
    toy_model.backbone.save_to_preset(str(tmp_path))
    loaded = OPTCausalLM.from_preset(tmp_path)
    assert_same_values(loaded.backbone, toy_model.backbone)
    assert loaded.preprocessor.sequence_length == 32
    toy_model.preprocessor.tokenizer.save_to_preset(tmp_path)  # the model stays
    assert_same_values(OPTBackbone.from_preset(tmp_path), toy_model.backbone)


def test_a_plain_configuration_has_the_names_of_keras_hub_alone(toy_preset):
    config = json.loads((toy_preset / "config.json").read_text())
    assert config["registered_name"] == "keras_hub>OPTBackbone"
    assert list(config["config"]) == [
        "name",
        "trainable",
        "dtype",
        "vocabulary_size",
        "num_layers",
        "num_heads",
        "hidden_dim",
        "intermediate_dim",
        "dropout",
        "max_sequence_length",
    ]


def test_shards_replace_a_single_file_and_the_other_way(toy_model, build_model, tmp_path):
    toy_model.save_to_preset(tmp_path)
    other = build_model(seed=8)
    other.save_to_preset(tmp_path, max_shard_size=TINY_SHARD)
    weights = {name for name in files(tmp_path) if name.startswith("model")}
    assert "model.weights.h5" not in weights
    assert {"model.weights.json", "model_00000.weights.h5", "model_00002.weights.h5"} <= weights
    assert_same_values(OPTBackbone.from_preset(tmp_path), other.backbone)
    toy_model.save_to_preset(tmp_path, max_shard_size=None)
    assert {name for name in files(tmp_path) if name.startswith("model")} == {"model.weights.h5"}
    assert_same_values(OPTBackbone.from_preset(tmp_path), toy_model.backbone)


def test_no_shard_is_larger_than_asked_but_for_a_single_tensor(toy_model, tmp_path):
    toy_model.backbone.export_to_transformers(tmp_path, max_shard_size=TINY_SHARD)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * (toy_model.backbone.count_params() + 2 * 32)
    limit = TINY_SHARD * 1024**3
    by_file = {}
    for name, file in index["weight_map"].items():
        by_file.setdefault(file, []).append(name)
    assert len(by_file) == 4
    assert sorted(by_file)[0] == "model-00001-of-00004.safetensors"
    for file, names in by_file.items():
        size = (tmp_path / file).stat().st_size
        header = int.from_bytes((tmp_path / file).read_bytes()[:8], "little") + 8
        assert size - header <= limit or names == ["model.decoder.embed_tokens.weight"]


@pytest.mark.parametrize("size", [0, -1, "10GB", float("nan")])
def test_a_shard_size_must_be_a_positive_number(toy_model, tmp_path, size):
    message = f"max_shard_size must be a positive number of GB, or None for a single file; got {size!r}"
    for save in (toy_model.save_to_preset, toy_model.backbone.export_to_transformers):
        with pytest.raises(ValueError, match=re.escape(message)):
            save(tmp_path / "p", max_shard_size=size)
    assert not (tmp_path / "p").exists()


def test_memory_is_one_tensor_at_a_time(toy_model, tmp_path, monkeypatch):
    read, written = [], []
    value, rows = live_weights.LiveWeights.value, writers._rows
    monkeypatch.setattr(
        live_weights.LiveWeights, "value", lambda self, name: read.append(name) or value(self, name)
    )

    def watched(tensors, pieces):
        for item in rows(tensors, pieces):
            written.append(len(read))
            yield item

    monkeypatch.setattr(writers, "_rows", watched)
    toy_model.backbone.save_to_preset(tmp_path)
    assert len(read) == 28  # 12 weights of two layers, the fused one in three parts, and four more
    assert written[:4] == [1, 2, 3, 4]
    assert written == sorted(written)
    assert max(written.count(n) for n in written) == 3


# === What stays ===


def test_other_files_of_the_folder_stay(toy_model, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "picture.png").write_bytes(b"mine")
    toy_model.save_to_preset(tmp_path)
    toy_model.save_to_preset(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / "assets" / "picture.png").read_bytes() == b"mine"
    assert not list(tmp_path.glob(".saving*"))


def test_a_file_in_the_folder_s_place_is_kept(toy_model, tmp_path):
    (tmp_path / "preset").write_text("mine")
    with pytest.raises(ValueError, match="preset is a file; give a folder to save into"):
        toy_model.save_to_preset(tmp_path / "preset")
    assert (tmp_path / "preset").read_text() == "mine"


def test_a_model_in_another_format_is_kept(toy_model, toy_preset, plain_hf_folder):
    before = contents(toy_preset), contents(plain_hf_folder)
    tokenizer = toy_model.preprocessor.tokenizer
    for save in (toy_model.save_to_preset, tokenizer.save_to_preset):
        with pytest.raises(
            ValueError, match="holds a Hugging Face model, and a Keras preset has files"
        ):
            save(plain_hf_folder)
    for save in (toy_model.export_to_transformers, tokenizer.export_to_transformers):
        with pytest.raises(
            ValueError, match="holds a Keras preset, and a Hugging Face model has files"
        ):
            save(toy_preset)
    assert (contents(toy_preset), contents(plain_hf_folder)) == before


def test_a_tokenizer_replaces_every_file_of_the_one_before(toy_tokenizer, plain_hf_folder):
    (plain_hf_folder / "tokenizer.json").write_text("{}")
    (plain_hf_folder / "added_tokens.json").write_text("{}")
    toy_tokenizer.export_to_transformers(plain_hf_folder)
    assert files(plain_hf_folder) == {
        "config.json",
        "model.safetensors",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    assert OPTTokenizer.from_preset(plain_hf_folder).vocabulary == toy_tokenizer.vocabulary


# === Interruptions ===


@pytest.mark.parametrize("export", [False, True])
def test_interrupted_while_writing_everything_is_as_before(
    toy_model, build_model, tmp_path, monkeypatch, export
):
    name = "export_to_transformers" if export else "save_to_preset"
    getattr(toy_model, name)(tmp_path / "old")
    before = contents(tmp_path / "old")
    value = live_weights.LiveWeights.value

    def interrupted(self, name):
        if name.startswith("transformer_layer_1"):
            raise KeyboardInterrupt
        return value(self, name)

    monkeypatch.setattr(live_weights.LiveWeights, "value", interrupted)
    other = build_model(seed=9)
    for folder in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            getattr(other, name)(tmp_path / folder)
    assert contents(tmp_path / "old") == before
    assert os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize("export", [False, True])
@pytest.mark.parametrize("moves", range(4))
def test_interrupted_while_moving_nothing_loads(
    toy_model, build_model, tmp_path, monkeypatch, moves, export
):
    name = "export_to_transformers" if export else "save_to_preset"
    getattr(toy_model, name)(tmp_path)
    path_type = type(tmp_path)
    replace, done = path_type.replace, []

    def killed(self, target):
        if "hidden" not in str(target):
            done.append(target)
            if len(done) > moves:
                raise OSError("no space left on device")
        return replace(self, target)

    monkeypatch.setattr(path_type, "replace", killed)
    with pytest.raises(OSError, match="no space left"):
        getattr(build_model(seed=9), name)(tmp_path)
    monkeypatch.undo()
    for cls in (OPTCausalLM, OPTBackbone):
        with pytest.raises(PresetError, match=r"it has no config\.json"):
            cls.from_preset(tmp_path)
    (left,) = tmp_path.glob(".saving-*")
    assert (left / "hidden" / "config.json").is_file()  # nothing is lost


def test_a_tokenizer_that_is_half_in_place_does_not_load(toy_tokenizer, tmp_path, monkeypatch):
    toy_tokenizer.save_to_preset(tmp_path)
    path_type = type(tmp_path)
    replace, moved = path_type.replace, []

    def killed(self, target):
        if target.parent.name == "tokenizer":
            moved.append(target.name)
            if len(moved) == 2:
                raise OSError("no space left on device")
        return replace(self, target)

    monkeypatch.setattr(path_type, "replace", killed)
    with pytest.raises(OSError, match="no space left"):
        toy_tokenizer.save_to_preset(tmp_path)
    assert set(moved) == {"vocabulary.json", "merges.txt"}
    with pytest.raises(PresetError, match="is not a preset folder"):
        OPTTokenizer.from_preset(tmp_path)


# === from_preset ===


def test_presets_lists_the_table_on_every_class(toy_model):
    for cls in CLASSES:
        assert list(cls.presets) == list(BUILTIN_PRESETS)
        assert cls.presets["opt_125m_en"] == {
            "metadata": {
                "description": BUILTIN_PRESETS["opt_125m_en"].description,
                "params": 125237760,
                "path": "opt",
            },
            "kaggle_handle": "kaggle://keras/opt/keras/opt_125m_en/3",
        }
        assert cls.presets["opt_tiny_en"]["kaggle_handle"] is None
    OPTBackbone.presets.clear()
    assert OPTBackbone.presets == toy_model.presets != {}


@pytest.mark.parametrize("cls", CLASSES)
def test_an_unknown_keyword_is_named(cls, toy_preset):
    with pytest.raises(TypeError, match="colour"):
        cls.from_preset(toy_preset, colour="red")


def test_overrides_reach_the_part_they_are_for(toy_model, toy_preset, toy_tokenizer):
    model = OPTCausalLM.from_preset(
        toy_preset, dtype="mixed_bfloat16", dropout=0.4, name="mine", trainable=False, preprocessor=None
    )
    assert (model.name, model.trainable, model.preprocessor) == ("mine", False, None)
    assert model.backbone.name == toy_model.backbone.name
    assert not model.trainable_weights
    assert (model.backbone.dropout, model.backbone.dtype_policy.name) == (0.4, "mixed_bfloat16")
    assert {v.dtype for v in model.backbone.weights} == {"float32"}
    assert_same_values(model.backbone, toy_model.backbone)
    preprocessor = OPTCausalLMPreprocessor.from_preset(
        toy_preset, tokenizer=toy_tokenizer, sequence_length=7
    )
    assert preprocessor.tokenizer is toy_tokenizer
    assert preprocessor("the the")[0]["token_ids"].shape == (7,)
    assert OPTCausalLM.from_preset(toy_preset, preprocessor=preprocessor).preprocessor is preprocessor
    assert OPTTokenizer.from_preset(toy_preset, sequence_length=3)("the").shape == (3,)


def test_without_weights_nothing_is_read(toy_model, toy_preset, tmp_path):
    toy_model.save_to_preset(tmp_path)
    (tmp_path / "model.weights.h5").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        CausalLM.from_preset(tmp_path)
    model = CausalLM.from_preset(tmp_path, load_weights=False)
    assert type(model) is OPTCausalLM
    assert model.count_params() == toy_model.count_params()


@pytest.mark.parametrize("hugging_face", [False, True])
def test_a_tokenizer_saved_alone_serves_what_it_can(toy_model, tmp_path, hugging_face):
    tokenizer = toy_model.preprocessor.tokenizer
    if hugging_face:
        tokenizer.export_to_transformers(tmp_path)
    else:
        tokenizer.save_to_preset(tmp_path)
    assert OPTTokenizer.from_preset(tmp_path)("the quick").tolist() == tokenizer("the quick").tolist()
    assert OPTCausalLMPreprocessor.from_preset(tmp_path).sequence_length == 1024
    for cls in (OPTBackbone, OPTCausalLM):
        with pytest.raises(PresetError, match=r"a tokenizer without a model: it has no config\.json"):
            cls.from_preset(tmp_path)


def test_a_backbone_saved_alone_serves_what_it_can(toy_model, tmp_path):
    toy_model.backbone.save_to_preset(tmp_path)
    assert OPTCausalLM.from_preset(tmp_path).preprocessor is None
    for cls in (OPTTokenizer, OPTCausalLMPreprocessor):
        with pytest.raises(PresetError, match="has no tokenizer files"):
            cls.from_preset(tmp_path)


def test_a_preprocessor_saved_alone_keeps_its_settings(toy_tokenizer, tmp_path):
    OPTCausalLMPreprocessor(toy_tokenizer, 17, add_end_token=False).save_to_preset(tmp_path)
    loaded = OPTCausalLMPreprocessor.from_preset(tmp_path)
    assert (loaded.sequence_length, loaded.add_start_token, loaded.add_end_token) == (17, True, False)


def test_a_new_backbone_in_the_folder_is_not_described_by_the_old_task(toy_model, tmp_path):
    toy_model.save_to_preset(tmp_path)
    toy_model.backbone.save_to_preset(tmp_path)
    assert files(tmp_path) == MODEL_FILES | TOKENIZER_FILES | {"preprocessor.json"}


def test_a_task_of_another_head_is_not_looked_at(toy_model, tmp_path):
    toy_model.save_to_preset(tmp_path)
    task = json.loads((tmp_path / "task.json").read_text())
    task |= {"registered_name": "mine>Classifier", "compile_config": {"loss": "mine>Loss"}}
    (tmp_path / "task.json").write_text(json.dumps(task))
    assert_same_values(CausalLM.from_preset(tmp_path).backbone, toy_model.backbone)


def test_a_quantized_preset_is_refused(toy_preset, tmp_path):
    config = json.loads((toy_preset / "config.json").read_text())
    config["config"]["dtype"] = {"class_name": "DTypePolicyMap", "config": {"default_policy": None}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PresetError, match="DTypePolicyMap as dtype, of a quantized model"):
        OPTBackbone.from_preset(tmp_path)


@pytest.mark.reference
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_keras_hub_s_mixed_presets_are_read_in_any_policy(build_hub_model, tmp_path, policy):
    theirs = build_hub_model(seed=4, dtype=policy)
    theirs.save_to_preset(str(tmp_path))
    assert OPTBackbone.from_preset(tmp_path).dtype_policy.name == "float32"  # Keras's, as there
    ours = OPTBackbone.from_preset(tmp_path, dtype=policy)
    assert ours.dtype_policy.name == policy
    assert {v.dtype for v in ours.weights} == {"float32"}
    expected = {v.path: v.numpy() for v in theirs.backbone.weights}
    found = {v.path: v.numpy() for v in ours.weights}
    name = "embeddings/token_embedding/embeddings"
    assert np.array_equal(found[name], expected[name])
    saving.save_backbone(ours, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["config"]["dtype"][
        "config"
    ] == {"name": policy}


def test_an_untokenizable_vocabulary_is_not_exported(tmp_path):
    tokenizer = OPTTokenizer({"<pad>": 1, "</s>": 2, "Ġfox": 5}, ["Ġ f", "o x", "Ġf ox"])
    with pytest.raises(ValueError, match="'Ġ' of the rule 'Ġ f' is not; add it"):
        tokenizer.export_to_transformers(tmp_path / "t")
    assert not (tmp_path / "t").exists()
    tokenizer.save_to_preset(tmp_path / "t")
    assert OPTTokenizer.from_preset(tmp_path / "t").vocabulary == tokenizer.vocabulary


def test_a_model_that_transformers_has_not_is_not_exported(backbone_sizes, tmp_path):
    backbone = OPTBackbone(**{**backbone_sizes, "norm_first": False, "final_norm": True})
    with pytest.raises(ValueError, match="no final norm where norms come after the residuals"):
        backbone.export_to_transformers(tmp_path / "t")
    assert not (tmp_path / "t").exists()

"""Weight maps: they cover the model exactly, reads and splits are inverse, errors are whole."""

from __future__ import annotations

import contextlib
import random
import shutil

import h5py
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exporter.checkpoints import weight_map as weight_maps
from exporter.checkpoints.formats import HUGGING_FACE, KERAS_PRESET
from exporter.checkpoints.h5_file import H5Reader
from exporter.checkpoints.safetensors_file import SafetensorsReader
from exporter.checkpoints.weight_map import bind_checkpoint, bind_names
from exporter.errors import CheckpointError
from exporter.presets.folder import read_preset
from exporter.tracing import build_weightless_backbone, weight_shapes
from exporter.weights import CheckpointWeights, read_weight
from graphs.contract import ModelConfig
from tests.exporter.weight_map_helpers import FORMATS, DictReader, random_reader, random_weights

BIG = ModelConfig(
    vocabulary_size=50272,
    num_layers=3,
    num_heads=12,
    hidden_dim=768,
    intermediate_dim=3072,
    max_sequence_length=2048,
)


@pytest.fixture(scope="module")
def model_shapes(toy_config):
    """What the backbone itself says of its variables."""
    return {config: weight_shapes(build_weightless_backbone(config)) for config in (toy_config, BIG)}


# === The maps ===


@pytest.mark.parametrize("name", FORMATS)
def test_a_map_covers_exactly_the_variables_of_the_backbone(name, model_shapes):
    for config, shapes in model_shapes.items():
        targets = bind_names(FORMATS[name], config)
        assert {t.name: t.shape for t in targets} == shapes
        assert len(targets) == len(shapes)  # none twice


@pytest.mark.parametrize("name", FORMATS)
def test_a_map_names_every_tensor_once_and_loses_no_value(name, toy_config):
    targets = bind_names(FORMATS[name], toy_config)
    sources = [source for target in targets for source in target.sources]
    assert len({source.name for source in sources}) == len(sources)
    for target in targets:
        parts = [np.prod(source.part_shape) for source in target.sources]
        assert sum(parts) == np.prod(target.shape)


def test_names_of_both_formats_are_the_published_ones(toy_config):
    names = {
        name: {s.name: s.shape for t in bind_names(FORMATS[name], toy_config) for s in t.sources}
        for name in FORMATS
    }
    keras, hf = names["keras"], names["huggingface"]
    assert len(keras) == len(hf) == 4 + 16 * toy_config.num_layers
    assert keras["layers/token_and_position_embedding/position_embedding/vars/0"] == (64, 32)
    decoder = "layers/transformer_decoder_1/_self_attention_layer"
    assert keras[f"{decoder}/query_dense/vars/0"] == (32, 4, 8)
    assert keras[f"{decoder}/output_dense/vars/0"] == (4, 8, 32)
    assert keras["layers/transformer_decoder/_feedforward_output_dense/vars/0"] == (64, 32)
    assert hf["model.decoder.embed_positions.weight"] == (66, 32)
    assert hf["model.decoder.layers.1.self_attn.q_proj.weight"] == (32, 32)
    assert hf["model.decoder.layers.0.fc1.weight"] == (64, 32)
    assert hf["model.decoder.final_layer_norm.bias"] == (32,)


# === Reading and splitting ===


def random_config(seed):
    """Small sizes of all proportions, ones among them."""
    generator = random.Random(seed)
    heads, head_dim = generator.randint(1, 4), generator.randint(1, 4)
    return ModelConfig(
        vocabulary_size=generator.randint(1, 12),
        num_layers=generator.randint(1, 3),
        num_heads=heads,
        hidden_dim=heads * head_dim,
        intermediate_dim=generator.randint(1, 9),
        max_sequence_length=generator.randint(1, 6),
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", FORMATS)
def test_splitting_and_reading_are_inverse(name, seed):
    config = random_config(seed)
    targets = bind_names(FORMATS[name], config)
    weights = random_weights(targets)
    tensors = {}
    for target in targets:
        for tensor, values in target.split(weights[target.name]):
            tensors[tensor] = values
    reader = DictReader(tensors)
    bound = bind_checkpoint(FORMATS[name], config, reader, "here")
    for target in bound:
        np.testing.assert_array_equal(target.read(reader), weights[target.name])
        joined = np.concatenate(list(target.blocks(reader)))
        np.testing.assert_array_equal(joined, weights[target.name])


def test_hugging_face_tensors_are_transposed_joined_and_stripped_of_rows(toy_config):
    reader = random_reader(HUGGING_FACE, toy_config)
    tensors, prefix = reader.tensors, "model.decoder."
    read = {t.name: t.read(reader) for t in bind_names(HUGGING_FACE, toy_config)}
    attention = f"{prefix}layers.1.self_attn."
    np.testing.assert_array_equal(
        read["transformer_layer_1/attention/qkv/kernel"],
        np.concatenate([tensors[f"{attention}{r}_proj.weight"].T for r in "qkv"], axis=1),
    )
    np.testing.assert_array_equal(
        read["transformer_layer_1/attention/qkv/bias"],
        np.concatenate([tensors[f"{attention}{r}_proj.bias"] for r in "qkv"]),
    )
    np.testing.assert_array_equal(
        read["transformer_layer_0/output/kernel"], tensors[f"{prefix}layers.0.fc2.weight"].T
    )
    np.testing.assert_array_equal(
        read["embeddings/position_embedding/embeddings"],
        tensors[f"{prefix}embed_positions.weight"][2:],
    )


def test_keras_projections_keep_heads_together(toy_config):
    reader = random_reader(KERAS_PRESET, toy_config)
    read = {t.name: t.read(reader) for t in bind_names(KERAS_PRESET, toy_config)}
    qkv = read["transformer_layer_0/attention/qkv/kernel"]
    attention = "layers/transformer_decoder/_self_attention_layer"
    for i, role in enumerate(("query", "key", "value")):
        kernel = reader.tensors[f"{attention}/{role}_dense/vars/0"]
        for head in range(4):
            columns = slice(32 * i + 8 * head, 32 * i + 8 * head + 8)
            np.testing.assert_array_equal(qkv[:, columns], kernel[:, head])
    output = read["transformer_layer_0/attention/output/kernel"]
    kernel = reader.tensors[f"{attention}/output_dense/vars/0"]
    np.testing.assert_array_equal(output[8:16], kernel[1])


def test_skipped_rows_come_back_as_zeros(toy_config):
    target = next(
        t
        for t in bind_names(HUGGING_FACE, toy_config)
        if t.name == "embeddings/position_embedding/embeddings"
    )
    values = random_weights([target])[target.name]
    ((name, stored),) = target.split(values)
    assert name == "model.decoder.embed_positions.weight"
    assert stored.shape == (66, 32)
    assert not stored[:2].any()
    np.testing.assert_array_equal(stored[2:], values)


@pytest.mark.parametrize("stored", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_stored_dtypes_are_read_as_float32(toy_config, stored):
    reader = random_reader(HUGGING_FACE, toy_config)
    reader.tensors = {name: value.astype(stored) for name, value in reader.tensors.items()}
    for target in bind_names(HUGGING_FACE, toy_config):
        values = target.read(reader)
        assert values.dtype == np.float32
        for block in target.blocks(reader):
            assert block.dtype == np.float32
            assert block.flags.c_contiguous
    name = "model.decoder.embed_tokens.weight"
    found = bind_names(HUGGING_FACE, toy_config)[0].read(reader)
    np.testing.assert_array_equal(found, reader.tensors[name].astype(np.float32))


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_are_bounded_and_make_the_whole(name, toy_config, monkeypatch):
    row_bytes = toy_config.hidden_dim * 4
    monkeypatch.setattr(weight_maps, "BLOCK_BYTES", 7 * row_bytes)
    reader = random_reader(FORMATS[name], toy_config)
    for target in bind_names(FORMATS[name], toy_config):
        reader.reads.clear()
        blocks = list(target.blocks(reader))
        np.testing.assert_array_equal(np.concatenate(blocks), target.read(reader))
        if target.name.startswith("embeddings/"):
            skipped = target.sources[0].skip_rows
            rows = target.shape[0]
            assert [len(block) for block in blocks] == [7] * (rows // 7) + [rows % 7]
            assert reader.reads[0] == (target.sources[0].name, skipped, skipped + 7)
            assert reader.reads[-2][1:] == (rows - rows % 7 + skipped, rows + skipped)


def test_one_row_larger_than_a_block_is_a_block(toy_config, monkeypatch):
    monkeypatch.setattr(weight_maps, "BLOCK_BYTES", 1)
    reader = random_reader(HUGGING_FACE, toy_config)
    target = bind_names(HUGGING_FACE, toy_config)[0]
    blocks = list(target.blocks(reader))
    assert len(blocks) == toy_config.vocabulary_size
    np.testing.assert_array_equal(np.concatenate(blocks), target.read(reader))


# === Binding a checkpoint ===


def test_all_problems_come_in_one_error(toy_config):
    reader = random_reader(HUGGING_FACE, toy_config)
    tensors, prefix = reader.tensors, "model.decoder."
    del tensors[f"{prefix}layers.0.fc1.bias"], tensors[f"{prefix}embed_tokens.weight"]
    tensors[f"{prefix}layers.1.fc1.weight"] = np.zeros((32, 64), np.float32)  # transposed
    tensors[f"{prefix}embed_positions.weight"] = np.zeros((64, 32), np.float32)  # without the two rows
    tensors["decoder.layers.5.fc2.bias"] = np.zeros(3, np.float32)
    tensors[f"{prefix}project_in.weight"] = np.zeros((3, 3), np.float32)
    with pytest.raises(CheckpointError) as raised:
        bind_checkpoint(HUGGING_FACE, toy_config, reader, "some/folder")
    assert str(raised.value) == (
        "the tensors of some/folder do not fit its configuration; "
        "2 missing: model.decoder.embed_tokens.weight, model.decoder.layers.0.fc1.bias; "
        "2 mis-shaped: model.decoder.embed_positions.weight is (64, 32), expected (66, 32), "
        "model.decoder.layers.1.fc1.weight is (32, 64), expected (64, 32); "
        "2 surplus: decoder.layers.5.fc2.bias, model.decoder.project_in.weight. "
        "The file has layers up to 5, and the configuration 2"
    )


def test_a_checkpoint_of_more_layers_is_surplus(toy_config):
    reader = random_reader(KERAS_PRESET, toy_config)
    fewer = ModelConfig(**{**toy_config.to_dict(), "num_layers": 1})
    with pytest.raises(CheckpointError, match="16 surplus: layers/transformer_decoder_1/") as raised:
        bind_checkpoint(KERAS_PRESET, fewer, reader, "here")
    assert str(raised.value).endswith("The file has layers up to 1, and the configuration 1")


def test_a_long_list_of_problems_is_cut_and_counted(toy_config):
    with pytest.raises(CheckpointError) as raised:
        bind_checkpoint(HUGGING_FACE, BIG, DictReader({}), "here")
    count = 4 + 16 * BIG.num_layers
    assert f"{count} missing: " in str(raised.value)
    assert len(str(raised.value)) < 500
    many = DictReader(
        {f"decoder.layers.{i:03}.fc1.bias": np.zeros(1, np.float32) for i in range(3, 120)}
    )
    with pytest.raises(CheckpointError) as raised:
        bind_checkpoint(HUGGING_FACE, BIG, many, "here")
    assert "117 surplus: decoder.layers.003.fc1.bias, " in str(raised.value)
    assert "decoder.layers.007.fc1.bias, and 112 more" in str(raised.value)
    assert len(str(raised.value)) < 1000


# === What is no part of a model ===

NO_PART = {
    "decoder.version": np.zeros(1, np.float32),
    "v_head.summary.weight": np.zeros((1, 32), np.float32),
    "model.decoder.embed_positions.position_ids": np.arange(8),
    "lm_head.bias": np.zeros(3, np.float32),
    "steps": np.zeros((), np.int64),
    "nothing": np.zeros(0, np.float32),
    "a" * 100_000: np.zeros(1, np.float32),
}


@pytest.mark.parametrize("name", FORMATS)
def test_tensors_that_are_no_part_of_the_model_are_told_and_left_out(name, toy_config, caplog):
    reader = random_reader(FORMATS[name], toy_config)
    expected = bind_checkpoint(FORMATS[name], toy_config, reader, "here")
    assert not caplog.messages
    reader.tensors |= NO_PART
    assert bind_checkpoint(FORMATS[name], toy_config, reader, "here") == expected
    (told,) = caplog.messages
    assert told.startswith("here holds 7 tensors that are no part of an OPT model and are not used: a")
    assert told.endswith("v_head.summary.weight") or told.endswith("and 2 more")
    assert len(told) < 500


def test_whole_numbers_are_no_weights(toy_config):
    reader = random_reader(HUGGING_FACE, toy_config)
    name = "model.decoder.layers.0.fc1.weight"
    reader.tensors[name] = reader.tensors[name].astype(np.int8)
    with pytest.raises(CheckpointError, match="holds values of type int8, and weights are floats"):
        bind_checkpoint(HUGGING_FACE, toy_config, reader, "here")


WRAPPED = ("module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "_fsdp_wrapped_module.")


@pytest.mark.parametrize("start", WRAPPED)
def test_what_training_libraries_put_before_names_is_taken_off(start, toy_config):
    reader = random_reader(HUGGING_FACE, toy_config)
    plain = {t.name: t.read(reader) for t in bind_checkpoint(HUGGING_FACE, toy_config, reader, "here")}
    reader.tensors = {start + name: values for name, values in reader.tensors.items()}
    for target in bind_checkpoint(HUGGING_FACE, toy_config, reader, "here"):
        np.testing.assert_array_equal(target.read(reader), plain[target.name])
    reader.tensors = {
        name.replace(".fc1", "._checkpoint_wrapped_module.fc1"): values
        for name, values in reader.tensors.items()
    }
    for target in bind_checkpoint(HUGGING_FACE, toy_config, reader, "here"):
        np.testing.assert_array_equal(target.read(reader), plain[target.name])
    reader.tensors["module.model.decoder.layers.0.fc1.bias"] = np.zeros(64, np.float32)
    reader.tensors["model.decoder.layers.0.fc1.bias"] = np.zeros(64, np.float32)
    with pytest.raises(CheckpointError, match=r"holds model\.decoder\.layers\.0\.fc1\.bias twice, as "):
        bind_checkpoint(HUGGING_FACE, toy_config, reader, "here")


@pytest.mark.parametrize("shape", [(0,), (0, 32)])
def test_empty_tensors_of_zero_3_are_called_that(shape, toy_config):
    reader = random_reader(HUGGING_FACE, toy_config)
    reader.tensors = {
        name: np.zeros(shape, np.float32) if name.endswith("weight") else values
        for name, values in reader.tensors.items()
    }
    with pytest.raises(CheckpointError) as raised:
        bind_checkpoint(HUGGING_FACE, toy_config, reader, "here")
    assert str(raised.value) == (
        "19 of the 36 tensors of here are empty, model.decoder.embed_tokens.weight, "
        "model.decoder.embed_positions.weight, and 17 more: they were saved without gathering the "
        "shards of ZeRO-3 or FSDP; run DeepSpeed's zero_to_fp32.py on the training checkpoint, or "
        "save again with stage3_gather_16bit_weights_on_model_save"
    )


def test_pairs_beside_the_weights_are_not_left_out_in_silence(toy_config):
    reader = random_reader(HUGGING_FACE, toy_config)
    pair = "base_model.model.model.decoder.layers.0.fc1.lora_A.default.weight"
    reader.tensors[pair] = np.zeros((2, 32), np.float32)
    with pytest.raises(CheckpointError, match=r"holds LoRA pairs beside the weights, .*as an adapter"):
        bind_checkpoint(HUGGING_FACE, toy_config, reader, "here")


@pytest.mark.parametrize("prefix", ["model.decoder.", "decoder."])
@pytest.mark.parametrize("head", [None, "lm_head.weight"])
def test_hugging_face_prefixes_and_the_copy_of_the_tied_table(tmp_path, toy_config, prefix, head):
    tensors = {
        name.replace("model.decoder.", prefix): value
        for name, value in random_reader(HUGGING_FACE, toy_config).tensors.items()
    }
    if head:
        tensors[head] = tensors[f"{prefix}embed_tokens.weight"].copy()
    save_file(tensors, str(tmp_path / "w"))
    reader = SafetensorsReader(tmp_path / "w")
    bound = bind_checkpoint(HUGGING_FACE, toy_config, reader, "here")
    assert bound[0].sources[0].name == f"{prefix}embed_tokens.weight"
    np.testing.assert_array_equal(bound[0].read(reader), tensors[f"{prefix}embed_tokens.weight"])


# === Files of the reference implementations ===

OLD_SPELLINGS = (
    ("_self_attention_layer/query_dense", "_self_attention_layer/_query_dense"),
    ("_self_attention_layer/key_dense", "_self_attention_layer/_key_dense"),
    ("_self_attention_layer/value_dense", "_self_attention_layer/_value_dense"),
    ("_self_attention_layer/output_dense", "_self_attention_layer/_output_dense"),
    ("_self_attention_layer_norm", "_self_attention_layernorm"),
    ("_feedforward_layer_norm", "_feedforward_layernorm"),
)


def rename_datasets(source, target, renames):
    """A copy of an HDF5 file under other names, as many bytes in each dataset."""
    with h5py.File(source) as old, h5py.File(target, "w") as new:

        def copy(name, item):
            if isinstance(item, h5py.Dataset):
                for current, older in renames:
                    name = name.replace(current, older)
                new[name] = item[()]

        old.visititems(copy)


def read_all(folder):
    with contextlib.closing(CheckpointWeights(read_preset(folder))) as source:
        return {name: read_weight(source, name) for name in source.shapes}


def assert_same_weights(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_older_spellings_give_the_same_weights(toy_preset, tmp_path):
    folder = tmp_path / "older"
    shutil.copytree(toy_preset, folder)
    weights = folder / "model.weights.h5"
    rename_datasets(toy_preset / "model.weights.h5", weights, OLD_SPELLINGS)
    names = set(H5Reader(weights).shapes)
    decoder = "layers/transformer_decoder_1"
    assert f"{decoder}/_self_attention_layer/_query_dense/vars/0" in names
    assert f"{decoder}/_self_attention_layernorm/vars/1" in names
    assert f"{decoder}/_self_attention_layer_norm/vars/1" not in names
    assert_same_weights(read_all(folder), read_all(toy_preset))


@pytest.mark.reference
def test_older_spellings_of_a_keras_hub_file(hub_preset, tmp_path):
    folder = tmp_path / "older"
    shutil.copytree(hub_preset, folder)
    rename_datasets(hub_preset / "model.weights.h5", folder / "model.weights.h5", OLD_SPELLINGS)
    assert_same_weights(read_all(folder), read_all(hub_preset))


@pytest.mark.reference
def test_the_oldest_group_name_is_read_as_keras_hub_reads_it(
    keras_hub, hub_model, hub_preset, tmp_path
):
    """Keras before 3 had `_layer_checkpoint_dependencies` for `layers`; Keras 3 still takes it."""
    folder = tmp_path / "oldest"
    shutil.copytree(hub_preset, folder)
    rename_datasets(
        hub_preset / "model.weights.h5",
        folder / "model.weights.h5",
        (("layers/", "_layer_checkpoint_dependencies/"),),
    )
    theirs = keras_hub.models.OPTBackbone.from_preset(str(folder))
    for found, expected in zip(theirs.variables, hub_model.backbone.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(found.value), np.asarray(expected.value))
    assert_same_weights(read_all(folder), read_all(hub_preset))


@pytest.mark.reference
def test_keras_hub_shards_hold_the_same_weights(hub_preset, hub_sharded_preset):
    assert_same_weights(read_all(hub_sharded_preset), read_all(hub_preset))


@pytest.mark.reference
def test_every_weight_of_a_keras_hub_preset_is_in_its_place(hub_model, hub_preset):
    found = read_all(hub_preset)
    backbone = hub_model.backbone
    table = np.asarray(backbone.embeddings.position_embedding.position_embeddings.value)
    np.testing.assert_array_equal(found["embeddings/position_embedding/embeddings"], table)
    for i, layer in enumerate(backbone.transformer_layers):
        prefix = f"transformer_layer_{i}"
        attention = layer._self_attention_layer
        kernels = [attention._query_dense, attention._key_dense, attention._value_dense]
        joined = np.concatenate([np.asarray(d.kernel.value).reshape(32, 32) for d in kernels], axis=1)
        np.testing.assert_array_equal(found[f"{prefix}/attention/qkv/kernel"], joined)
        joined = np.concatenate([np.asarray(d.bias.value).reshape(32) for d in kernels])
        np.testing.assert_array_equal(found[f"{prefix}/attention/qkv/bias"], joined)
        for name, norm in (
            ("attention_norm", layer._self_attention_layer_norm),
            ("feed_forward_norm", layer._feedforward_layer_norm),
        ):
            np.testing.assert_array_equal(found[f"{prefix}/{name}/gamma"], np.asarray(norm.gamma.value))
            np.testing.assert_array_equal(found[f"{prefix}/{name}/beta"], np.asarray(norm.beta.value))


@pytest.mark.reference
def test_transformers_shards_hold_the_same_weights(hf_folder, hf_sharded_folder, hf_model):
    whole = read_all(hf_folder)
    assert_same_weights(read_all(hf_sharded_folder), whole)
    tensors = load_file(hf_folder / "model.safetensors")
    table = hf_model.model.decoder.embed_positions.weight.detach().numpy()
    np.testing.assert_array_equal(whole["embeddings/position_embedding/embeddings"], table[2:])
    assert "lm_head.weight" not in tensors  # transformers leaves the tied copy out

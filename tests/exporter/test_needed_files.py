"""Which files of a repository are downloaded."""

from __future__ import annotations

import json

import pytest

from exporter.errors import CheckpointError
from exporter.presets.hubs.failure import HubFailure
from exporter.presets.hubs.needed_files import check_weights, layout_of, weight_files

KERAS, HUGGING_FACE = "keras", "huggingface"
INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"


def index(*shards):
    """An index that spreads its tensors over shards."""
    return json.dumps({"weight_map": {f"tensor.{i}": shard for i, shard in enumerate(shards)}})


def no_index(name):
    raise AssertionError(f"{name} is not needed")


@pytest.mark.parametrize(
    ("layout", "names", "needed"),
    [
        (KERAS, {"model.weights.h5", "model.safetensors"}, "model.weights.h5"),
        (HUGGING_FACE, {"model.weights.h5", "model.safetensors"}, "model.safetensors"),
        (HUGGING_FACE, {"pytorch_model.bin", "flax_model.msgpack", "tf_model.h5"}, "pytorch_model.bin"),
        (HUGGING_FACE, {"pytorch_model.bin", "model.safetensors", BIN_INDEX}, "model.safetensors"),
        (HUGGING_FACE, {INDEX, "model.safetensors"}, "model.safetensors"),
    ],
)
def test_one_file_of_weights(layout, names, needed):
    assert weight_files(layout, names, no_index) == [needed]


@pytest.mark.parametrize(
    ("layout", "index_name", "shards"),
    [
        (KERAS, "model.weights.json", ["model_00000.weights.h5", "model_00001.weights.h5"]),
        (HUGGING_FACE, INDEX, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
        (
            HUGGING_FACE,
            BIN_INDEX,
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
        ),
    ],
)
def test_the_shards_that_an_index_lists(tmp_path, layout, index_name, shards):
    (tmp_path / index_name).write_text(index(*reversed(shards), shards[0]))
    names = {index_name, *shards, "other-00001-of-00001.bin", "tf_model.h5"}
    assert weight_files(layout, names, tmp_path.joinpath) == [index_name, *shards]
    with pytest.raises(HubFailure) as raised:
        weight_files(layout, names - {shards[1]}, tmp_path.joinpath)
    assert str(raised.value) == f"it lacks the shards {shards[1]} that {index_name} lists"


def test_shards_of_safetensors_come_before_pickles(tmp_path):
    (tmp_path / INDEX).write_text(index("a.safetensors"))
    names = {INDEX, "a.safetensors", "pytorch_model.bin", BIN_INDEX}
    assert weight_files(HUGGING_FACE, names, tmp_path.joinpath) == [INDEX, "a.safetensors"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": [1]}', index("../../a.safetensors")])
def test_an_index_that_is_none_or_points_elsewhere(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"is not an index of shards|outside its folder"):
        weight_files(HUGGING_FACE, {INDEX}, tmp_path.joinpath)


def test_no_weights():
    with pytest.raises(HubFailure) as raised:
        weight_files(HUGGING_FACE, {"tf_model.h5", "flax_model.msgpack"}, no_index)
    assert str(raised.value) == (
        f"it has no weights: expected model.safetensors or {INDEX} or pytorch_model.bin or {BIN_INDEX}"
    )
    with pytest.raises(HubFailure, match=r"expected model\.weights\.h5 or model\.weights\.json$"):
        weight_files(KERAS, {"model.safetensors"}, no_index)


def test_whose_configuration_it_is(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"registered_name": "keras_hub>OPTBackbone", "config": {}}')
    assert layout_of(file) == KERAS
    file.write_text('{"class_name": "OPTBackbone", "config": {}}')
    assert layout_of(file) == KERAS
    file.write_text('{"model_type": "opt"}')
    assert layout_of(file) == HUGGING_FACE
    for text in ("<html>", "[]"):
        file.write_text(text)
        with pytest.raises(HubFailure, match=r"^its config\.json is not "):
            layout_of(file)
    file.unlink()
    with pytest.raises(HubFailure, match=r"^it has no config\.json, so it holds no model$"):
        layout_of(file)


def test_a_folder_is_whole_when_all_shards_are_there(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    with pytest.raises(HubFailure, match="no weights"):
        check_weights(tmp_path)
    (tmp_path / INDEX).write_text(index("a.safetensors", "b.safetensors"))
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(HubFailure, match=r"lacks the shards b\.safetensors that"):
        check_weights(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"")
    check_weights(tmp_path)

"""Finding a checkpoint in a folder: which files are read, and shards read as one."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from exporter.checkpoints.readers import ShardedReader, open_checkpoint
from exporter.errors import CheckpointError
from tests.exporter.torch_files import write_torch_file

VALUES = np.arange(-6, 6, dtype=np.float32).reshape(4, 3) / 4


def write_shards(folder, weight_map, files=("one", "two")):
    for i, name in enumerate(files):
        save_file({f"t{i}": VALUES + i}, str(folder / name))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map}), encoding="utf-8"
    )


def test_shards_are_read_as_one(tmp_path):
    write_shards(tmp_path, {"t0": "one", "t1": "two"})
    reader = open_checkpoint(tmp_path, "huggingface")
    assert isinstance(reader, ShardedReader)
    assert reader.shapes == {"t0": (4, 3), "t1": (4, 3)}
    np.testing.assert_array_equal(reader.read("t0"), VALUES)
    np.testing.assert_array_equal(reader.read("t1", 1, 2), VALUES[1:2] + 1)
    reader.close()


def test_shards_of_keras_may_hold_one_layer_in_two_files(tmp_path):
    for i in range(2):
        with h5py.File(tmp_path / f"model_{i}.weights.h5", "w") as file:
            file[f"layers/dense/vars/{i}"] = VALUES + i
    index = {"weight_map": {"/layers/dense/vars": ["model_0.weights.h5", "model_1.weights.h5"]}}
    (tmp_path / "model.weights.json").write_text(json.dumps(index), encoding="utf-8")
    reader = open_checkpoint(tmp_path, "keras")
    assert set(reader.shapes) == {"layers/dense/vars/0", "layers/dense/vars/1"}
    np.testing.assert_array_equal(reader.read("layers/dense/vars/1"), VALUES + 1)


def test_a_single_file_comes_before_an_index(tmp_path):
    write_shards(tmp_path, {"t0": "one", "t1": "two"})
    save_file({"alone": VALUES}, str(tmp_path / "model.safetensors"))
    assert set(open_checkpoint(tmp_path, "huggingface").shapes) == {"alone"}


def test_missing_shards_are_all_named(tmp_path):
    write_shards(tmp_path, {"t0": "one", "t1": "two", "t2": "three", "t3": "four"})
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(tmp_path, "huggingface")
    assert "lacks the shards four, three that model.safetensors.index.json lists" in str(raised.value)


def test_a_truncated_shard_is_an_error(tmp_path):
    write_shards(tmp_path, {"t0": "one", "t1": "two"})
    data = (tmp_path / "two").read_bytes()
    (tmp_path / "two").write_bytes(data[:-5])
    with pytest.raises(CheckpointError, match="two is truncated: tensor 't1'"):
        open_checkpoint(tmp_path, "huggingface")


@pytest.mark.parametrize(
    "name", ["../x", "/x", "deeper/x", "..", ".", "", "x/", "../folder/one", 5, None, {"a": "one"}]
)
def test_an_index_names_plain_files_only(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"t": VALUES}, str(tmp_path / "x"))  # what the traversal would reach
    write_shards(folder, {"t0": "one", "t1": name}, files=("one",))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(folder, "huggingface")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": 3}'])
def test_a_broken_index_is_an_error(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not an index of shards"):
        open_checkpoint(tmp_path, "huggingface")


# === Which files ===


def save_tensor(path, value):
    """One tensor `w` of the value, in the format that the file's name says."""
    values = np.full((2,), value, np.float32)
    if path.suffix == ".safetensors":
        save_file({"w": values}, str(path))
    else:
        write_torch_file(path, {"w": values})


def save_sharded(folder, index, shard, value):
    save_tensor(folder / shard, value)
    (folder / index).write_text(json.dumps({"weight_map": {"w": shard}}), encoding="utf-8")


def test_the_order_of_preference_of_hugging_face_files(tmp_path):
    """Each is added to what the folder had, and is read instead of it."""
    save_sharded(tmp_path, "pytorch_model.bin.index.json", "pytorch_model-1-of-1.bin", 1)
    assert open_checkpoint(tmp_path, "huggingface").read("w").tolist() == [1, 1]
    save_tensor(tmp_path / "pytorch_model.bin", 2)
    assert open_checkpoint(tmp_path, "huggingface").read("w").tolist() == [2, 2]
    save_sharded(tmp_path, "model.safetensors.index.json", "model-1-of-1.safetensors", 3)
    assert open_checkpoint(tmp_path, "huggingface").read("w").tolist() == [3, 3]
    save_tensor(tmp_path / "model.safetensors", 4)
    assert open_checkpoint(tmp_path, "huggingface").read("w").tolist() == [4, 4]


def test_a_truncated_torch_shard_is_named(tmp_path):
    save_sharded(tmp_path, "pytorch_model.bin.index.json", "pytorch_model-1-of-1.bin", 1)
    shard = tmp_path / "pytorch_model-1-of-1.bin"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"pytorch_model-1-of-1\.bin is truncated"):
        open_checkpoint(tmp_path, "huggingface")


HUGGING_FACE_FILES = (
    "model.safetensors, or model.safetensors.index.json with its shards, or "
    "pytorch_model.bin, or pytorch_model.bin.index.json with its shards"
)


@pytest.mark.parametrize(
    ("layout", "wanted"),
    [
        ("huggingface", HUGGING_FACE_FILES),
        ("keras", "model.weights.h5, or model.weights.json with its shards"),
    ],
)
def test_no_weights_at_all(tmp_path, layout, wanted):
    (tmp_path / "model.h5").write_bytes(b"")  # nothing that is looked for
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(tmp_path, layout)
    assert str(raised.value) == f"{tmp_path} has no weights: expected {wanted}"


@pytest.mark.parametrize(
    "names", [["tf_model.h5"], ["flax_model.msgpack"], ["tf_model.h5", "flax_model.msgpack"]]
)
def test_weights_of_other_frameworks(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"values")
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(tmp_path, "huggingface")
    assert str(raised.value) == (
        f"{tmp_path} has no weights: expected {HUGGING_FACE_FILES}; "
        f"{' and '.join(names)} cannot be read"
    )

"""What the fuzzers have found, as small as it gets."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("h5py")

import h5py

from exporter.checkpoints import h5_check
from exporter.checkpoints.h5_file import H5Reader
from exporter.checkpoints.safetensors_file import SafetensorsReader
from exporter.errors import CheckpointError, PresetError
from exporter.presets.folder import read_preset
from graphs.manifest import ManifestError, read_manifest
from runtime.tokenization.tokenizer import Tokenizer
from tests.faults.good_presets import VOCABULARY, tokenizer_json, write_json, write_preset
from tests.fuzz.harnesses import HARNESSES

SPECIAL = {"start_token_id": 2, "end_token_id": 2, "pad_token_id": 1}


def altered(data, mark, distance, value):
    """A file with one byte changed, counted from where a mark stands in it."""
    at = data.index(mark) + distance
    assert data[at] != value
    return data[:at] + bytes([value]) + data[at + 1 :]


def test_one_bit_of_an_attributes_type_that_the_hdf5_library_crashes_on(tmp_path):
    seed = HARNESSES["h5"].seeds()[0]
    (tmp_path / "w.h5").write_bytes(altered(seed, b"dtype\0\0\0\x19\1", 9, 5))
    with pytest.raises(CheckpointError, match=r"w\.h5 is damaged: the HDF5 library crashed on it"):
        H5Reader(tmp_path / "w.h5")


def test_one_bit_of_a_heap_that_the_hdf5_library_goes_round_in(tmp_path, monkeypatch):
    monkeypatch.setattr(h5_check, "SECONDS", 3)
    seed = HARNESSES["h5"].seeds()[0]
    (tmp_path / "w.h5").write_bytes(altered(seed, b"GCOL\1", 24, 9))
    with pytest.raises(CheckpointError, match="the HDF5 library does not come to an end with it"):
        H5Reader(tmp_path / "w.h5")


def test_a_file_is_read_for_a_trial_once(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["layers/w"] = np.ones(3, np.float32)
    H5Reader(tmp_path / "w.h5").close()
    monkeypatch.setattr(h5_check.subprocess, "run", None)
    assert H5Reader(tmp_path / "w.h5").read("layers/w").tolist() == [1, 1, 1]
    (tmp_path / "w.h5").write_bytes(b"another")
    with pytest.raises(TypeError):
        H5Reader(tmp_path / "w.h5")


@pytest.mark.parametrize("shape", [[0, 2**62], [2**40, 0, 3], [2**61, 0, 2**61]])
def test_sizes_beside_none(tmp_path, shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="tensor 'a' has no values and the shape"):
        SafetensorsReader(tmp_path / "w")


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a\nb"])
def test_a_shard_without_a_name_that_can_be_printed(tmp_path, name):
    folder = write_preset(tmp_path / "preset", "shards")
    text = json.dumps({"weight_map": {"a": name}})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError) as raised:
        read_preset(folder).open_weights()
    str(raised.value).encode()


def tokenizer_of(**model):
    values = tokenizer_json()
    values["model"] = values["model"] | model
    return {"tokenizer.json": json.dumps(values), "special_tokens.json": json.dumps(SPECIAL)}


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ({"vocab": VOCABULARY | {"x": 4_000_000_000}}, "not to an id of 0 to 16777215"),
        ({"vocab": VOCABULARY | {"x": 7}}, "gives one id to two tokens"),
        ({"vocab": VOCABULARY | {"x": -1}}, "not to an id of 0 to 16777215"),
        ({"dropout": 0.5}, "has dropout, which gives a text other tokens every time"),
        ({"merges": 5}, "tokenizer.json"),
    ],
)
def test_tokenizers_that_the_library_hangs_on_or_reads_at_random(model, error):
    with pytest.raises(ValueError, match=error):
        Tokenizer.from_files(tokenizer_of(**model))


def test_added_tokens_of_high_ids():
    values = tokenizer_json()
    values["added_tokens"][0]["id"] = 2**32 - 1
    files = {"tokenizer.json": json.dumps(values), "special_tokens.json": json.dumps(SPECIAL)}
    with pytest.raises(ValueError, match="must have ids of 0 to 16777215"):
        Tokenizer.from_files(files)


@pytest.mark.parametrize("key", ["config", "registered_name"])
def test_half_a_character_in_a_configuration(tmp_path, key):
    folder = write_preset(tmp_path / "preset", "h5")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    write_json(folder / "config.json", config | {key: {"\ud800": "\ud800"}})
    with pytest.raises(PresetError, match="it holds half a character"):
        read_preset(folder)


def test_a_pattern_that_the_library_gives_up_on():
    values = tokenizer_json()
    split = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}
    steps = [split, values["pre_tokenizer"]]
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    files = {"tokenizer.json": json.dumps(values), "special_tokens.json": json.dumps(SPECIAL)}
    tokenizer = Tokenizer.from_files(files)
    with pytest.raises(ValueError, match="retry-limit-in-match over"):
        tokenizer.encode("a" * 100)


def test_half_a_character_in_a_manifest(tmp_path):
    text = '{"format": "opt-onnx-bundle", "contract_revision": "\\ud800"}'
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match="is not JSON: it holds half a character") as raised:
        read_manifest(tmp_path)
    str(raised.value).encode()

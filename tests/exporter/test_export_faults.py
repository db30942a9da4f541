"""Exports that cannot be: what is said, and that nothing is left behind or lost."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from exporter import OPTCausalLM, export, export_bundle
from exporter.bundle_folder import atomic_folder
from exporter.errors import CheckpointError, ExportError, PresetError
from exporter.presets.folder import read_preset
from exporter.weights import CheckpointWeights
from graphs.manifest import read_manifest
from tests.exporter.export_helpers import (
    FILES,
    STEPS,
    TOKENIZER_FILES,
    fails,
    listing,
    run,
)

pytestmark = pytest.mark.usefixtures("quick_tracing")


# === Where the output is not free ===


def test_an_existing_bundle_stays_without_force(old_bundle, toy_preset):
    before = listing(old_bundle.parent)
    line = fails("--preset", toy_preset, "--output", old_bundle)
    assert line == f"{old_bundle} exists; replace it with --force or choose another --output"
    assert listing(old_bundle.parent) == before


def test_force_replaces_a_bundle_as_a_whole(old_bundle, plain_hf_folder):
    (old_bundle / "packed" / ("0" * 16)).mkdir(parents=True)
    code, _, err = run(
        "--preset", plain_hf_folder, "--output", old_bundle, "--force", "--verify", "graph"
    )
    assert code == 0, err
    assert {p.name for p in old_bundle.iterdir()} == FILES - TOKENIZER_FILES
    assert read_manifest(old_bundle).source["preset"] == "plain_hf"
    assert {p.name for p in old_bundle.parent.iterdir()} == {"bundle", "plain_hf"}


@pytest.mark.parametrize("options", [[], ["--force"]])
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_is_no_bundle_is_never_replaced(toy_preset, tmp_path, kind, options):
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine", encoding="utf-8")
    elif kind == "folder":
        target.mkdir()
        (target / "mine.txt").write_text("mine", encoding="utf-8")
    else:
        (tmp_path / "elsewhere").write_text("mine", encoding="utf-8")
        target.symlink_to(tmp_path / "elsewhere")
    before = listing(tmp_path)
    what = "a bundle" if kind == "folder" else "a folder"
    line = fails("--preset", toy_preset, "--output", target, *options)
    assert line == f"{target} exists and is not {what}; choose another --output"
    assert listing(tmp_path) == before


def test_a_link_to_a_bundle_is_followed(old_bundle, plain_hf_folder):
    link = old_bundle.with_name("link")
    link.symlink_to(old_bundle.name)
    code, _, err = run("--preset", plain_hf_folder, "--output", link, "--force", "--verify", "graph")
    assert code == 0, err
    assert link.is_symlink()
    assert read_manifest(old_bundle).source["preset"] == "plain_hf"


def test_a_preset_within_the_old_bundle_is_not_lost(old_bundle, toy_preset):
    folder = shutil.copytree(toy_preset, old_bundle / "preset")
    before = listing(old_bundle)
    line = fails("--preset", folder, "--output", old_bundle, "--force")
    assert line == (
        f"{old_bundle} holds the preset {folder}, which would be replaced too; choose another --output"
    )
    assert listing(old_bundle) == before


def test_the_working_folder_is_free_too(toy_preset, tmp_path, monkeypatch):
    """The shell that stands there does not end up in a deleted folder."""
    monkeypatch.chdir(tmp_path)
    code, _, err = run("--preset", toy_preset, "--output", ".", "--verify", "none")
    assert code == 0, err
    assert {p.name for p in Path.cwd().iterdir()} == FILES
    code, _, err = run("--preset", toy_preset, "--output", ".", "--force", "--verify", "none")
    assert code == 0, err
    assert {p.name for p in Path.cwd().iterdir()} == FILES


def test_an_empty_folder_is_free(toy_preset, tmp_path):
    (tmp_path / "b").mkdir()
    code, _, err = run("--preset", toy_preset, "--output", tmp_path / "b", "--verify", "none")
    assert code == 0, err
    assert {p.name for p in (tmp_path / "b").iterdir()} == FILES


def test_a_disk_that_is_too_small(toy_preset, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("nothing may be traced or calibrated")

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    monkeypatch.setattr(export, "trace", never)
    monkeypatch.setattr(export, "calibration_tokens", never)
    line = fails("--preset", toy_preset, "--output", tmp_path / "b")
    assert line == (
        f"the disk of {tmp_path} has 0.10 MB free and the bundle takes 0.22 MB; free some room or "
        "choose an --output on another disk"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_just_large_enough(toy_preset, tmp_path, monkeypatch):
    weights = 0
    with contextlib.closing(CheckpointWeights(read_preset(toy_preset))) as source:
        weights = sum(int(np.prod(shape)) * 4 for shape in source.shapes.values())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=weights))
    with pytest.raises(ExportError, match="free some room"):
        export_bundle(toy_preset, tmp_path / "b", verify="none")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=weights + 10**6))
    export_bundle(toy_preset, tmp_path / "b", verify="none")
    assert sum(p.stat().st_size for p in (tmp_path / "b").iterdir()) < weights + 10**6


# === Failing midway ===


def raising(error):
    def step(*args, **kwargs):
        raise error

    return step


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("broken here"), 2, "broken here"),
        (OSError(5, "Input/output error"), 2, "[Errno 5] Input/output error"),
        (KeyboardInterrupt(), 130, "interrupted; nothing unfinished was left behind"),
    ],
    ids=["error", "broken disk", "interrupt"],
)
def test_nothing_is_left_of_a_failed_export(
    toy_preset, tmp_path, monkeypatch, step, error, code, message
):
    monkeypatch.setattr(export, step, raising(error))
    assert fails("--preset", toy_preset, "--output", tmp_path / "b", code=code) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_anyway(toy_preset, tmp_path, monkeypatch, step, code):
    monkeypatch.setattr(export, step, raising(OSError(code, os.strerror(code))))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * 10**9))
    written = re.escape(os.strerror(code))
    line = fails("--preset", toy_preset, "--output", tmp_path / "new" / "b")
    assert re.fullmatch(
        rf"the disk of {tmp_path}/new is full \({written}\): 0\.[01][0-9] MB of the bundle were "
        r"written and 2\.00 GB are free; free some room or choose an --output on another disk",
        line,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [RuntimeError("broken here"), KeyboardInterrupt()], ids=repr)
def test_the_old_bundle_survives_a_failed_export(old_bundle, toy_preset, monkeypatch, step, error):
    before = listing(old_bundle.parent)
    monkeypatch.setattr(export, step, raising(error))
    code = 130 if isinstance(error, KeyboardInterrupt) else 2
    fails("--preset", toy_preset, "--output", old_bundle, "--force", code=code)
    assert listing(old_bundle.parent) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=repr)
def test_failing_in_the_middle_of_the_weights(
    toy_preset, old_bundle, tmp_path, monkeypatch, error, force
):
    blocks, calls = CheckpointWeights.blocks, []

    def few_blocks(self, name):
        calls.append(name)
        if len(calls) > 6:
            raise error
        return blocks(self, name)

    monkeypatch.setattr(CheckpointWeights, "blocks", few_blocks)
    before = listing(tmp_path)
    target = old_bundle if force else tmp_path / "new"
    code = 130 if isinstance(error, KeyboardInterrupt) else 2
    fails("--preset", toy_preset, "--output", target, *["--force"] * force, code=code)
    assert len(calls) == 7
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", "another/manifest.json", "packed/notes.txt"])
def test_what_no_export_wrote_is_not_deleted(toy_preset, old_bundle, monkeypatch, name):
    monkeypatch.setattr(export, "trace", None)  # it is told before there is work
    (old_bundle / name).parent.mkdir(exist_ok=True)
    (old_bundle / name).write_text("mine")
    with pytest.raises(ExportError, match="which no export wrote and --force would delete; move that"):
        export_bundle(toy_preset, old_bundle, force=True)
    assert (old_bundle / name).read_text() == "mine"


def test_a_second_export_to_the_same_place_fails_before_tracing(toy_preset, old_bundle, monkeypatch):
    before = listing(old_bundle.parent)
    monkeypatch.setattr(export, "trace", raising(AssertionError("nothing may be traced")))
    with contextlib.suppress(RuntimeError), atomic_folder(old_bundle):
        line = fails("--preset", toy_preset, "--output", old_bundle, "--force")
        raise RuntimeError
    assert line == (
        f"process {os.getpid()} is writing {old_bundle} right now; wait for it or choose another "
        "--output"
    )
    assert listing(old_bundle.parent) == before


def test_a_calibration_text_that_is_too_short_fails_before_tracing(toy_preset, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "trace", raising(AssertionError("nothing may be traced")))
    text = tmp_path / "text"
    text.write_text("the quick", encoding="utf-8")
    options = ["--output", tmp_path / "a" / "b", "--precision", "int8", "--calibration", text]
    line = fails("--preset", toy_preset, *options)
    assert line == (
        "the calibration text has 4 tokens; at least 64 are needed, some hundreds are better: give a "
        "longer text"
    )
    assert {p.name for p in tmp_path.iterdir()} == {"text"}


def test_a_tokenizer_with_more_ids_than_the_model_has_rows(toy_preset, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "trace", raising(AssertionError("nothing may be traced")))
    folder = copy_preset(toy_preset, tmp_path)
    path = folder / "assets" / "tokenizer" / "vocabulary.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**vocabulary, "surplus": 288}), encoding="utf-8")
    line = fails("--preset", folder, "--output", tmp_path / "b")
    assert line == (
        "the tokenizer of preset has ids up to 288, 'surplus', and the model has rows for ids up to "
        "287; export it with the tokenizer that it was trained with, by --tokenizer FOLDER"
    )


@pytest.mark.parametrize(
    ("precision", "options"),
    [("fp32", {}), ("int8", {}), ("int4", {}), ("int4", {"prefill_precision": "int8"})],
    ids=str,
)
def test_the_room_that_is_asked_for_beforehand_is_what_the_bundle_takes(
    toy_preset, tmp_path, monkeypatch, precision, options
):
    asked, check = [], export.check_space
    monkeypatch.setattr(
        export, "check_space", lambda parent, needed: (asked.append(needed), check(parent, needed))
    )
    export_bundle(toy_preset, tmp_path / "b", precision=precision, verify="none", **options)
    weights = (tmp_path / "b" / "weights.bin").stat().st_size
    assert asked == [weights + 2 * export.GRAPH_BYTES_PER_LAYER]


# === Presets that cannot be exported ===


def copy_preset(preset, tmp_path):
    return shutil.copytree(preset, tmp_path / "preset")


def rewrite_weights(folder, change):
    """Changes the tensors of a Keras weights file by name."""
    import h5py

    with h5py.File(folder / "model.weights.h5", "a") as file:
        change(file)


def test_an_unknown_preset(tmp_path):
    line = fails("--preset", "opt_13b_en", "--output", tmp_path / "b")
    assert line.startswith("no preset 'opt_13b_en'; give a built-in name (opt_tiny_en, ")
    with pytest.raises(PresetError):
        export_bundle("opt_13b_en", tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_config(tmp_path):
    (tmp_path / "empty").mkdir()
    line = fails("--preset", tmp_path / "empty", "--output", tmp_path / "b")
    assert "is not a preset folder: it has no config.json" in line


def test_a_model_that_is_not_opt(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
    line = fails("--preset", tmp_path, "--output", tmp_path / "b")
    assert line == f"{tmp_path} holds a 'gpt2' model, not 'opt'"


def test_tensors_that_do_not_fit(toy_preset, tmp_path):
    folder = copy_preset(toy_preset, tmp_path)

    def change(file):
        del file["layers/layer_normalization/vars/1"]
        file["layers/transformer_decoder_7/_feedforward_output_dense/vars/1"] = np.zeros(3)
        del file["layers/transformer_decoder/_feedforward_output_dense/vars/1"]
        file["layers/transformer_decoder/_feedforward_output_dense/vars/1"] = np.zeros(64)

    rewrite_weights(folder, change)
    line = fails("--preset", folder, "--output", tmp_path / "b")
    assert line == (
        f"the tensors of {folder} do not fit its configuration; "
        "1 missing: layers/layer_normalization/vars/1; "
        "1 mis-shaped: layers/transformer_decoder/_feedforward_output_dense/vars/1 is (64,), "
        "expected (32,); 1 surplus: "
        "layers/transformer_decoder_7/_feedforward_output_dense/vars/1. The file has layers up to 7, "
        "and the configuration 2"
    )
    with pytest.raises(CheckpointError):
        export_bundle(folder, tmp_path / "b")
    assert {p.name for p in tmp_path.iterdir()} == {"preset"}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_keras_weights(toy_preset, tmp_path, share):
    folder = copy_preset(toy_preset, tmp_path)
    weights = folder / "model.weights.h5"
    data = weights.read_bytes()
    weights.write_bytes(data[: int(len(data) * share)])
    line = fails("--preset", folder, "--output", tmp_path / "b")
    assert line.startswith(f"{weights} is truncated or not an HDF5 file: ")
    assert {p.name for p in tmp_path.iterdir()} == {"preset"}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
def test_truncated_safetensors(plain_hf_folder, tmp_path, share):
    weights = plain_hf_folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: int(len(data) * share)])
    line = fails("--preset", plain_hf_folder, "--output", tmp_path / "b")
    assert line.startswith(f"{weights} is truncated")
    assert {p.name for p in tmp_path.iterdir()} == {"plain_hf"}


def test_weights_that_cannot_be_read_to_the_end(toy_preset, tmp_path):
    """Damage that shows when half of the bundle is written."""
    folder = copy_preset(toy_preset, tmp_path)
    name = "layers/transformer_decoder_1/_feedforward_output_dense/vars/0"
    place = {}

    def change(file):
        values = file[name][()]
        del file[name]
        file.create_dataset(name, data=values, chunks=values.shape, compression="gzip")
        place["offset"] = file[name].id.get_chunk_info(0).byte_offset

    rewrite_weights(folder, change)
    weights = folder / "model.weights.h5"
    data = bytearray(weights.read_bytes())
    data[place["offset"] : place["offset"] + 32] = bytes(32)
    weights.write_bytes(data)
    line = fails("--preset", folder, "--output", tmp_path / "b")
    assert line.startswith(f"{weights} is truncated at tensor '{name}'")
    assert {p.name for p in tmp_path.iterdir()} == {"preset"}


def test_a_tokenizer_without_its_special_tokens(toy_preset, tmp_path):
    folder = copy_preset(toy_preset, tmp_path)
    path = folder / "assets" / "tokenizer" / "vocabulary.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))
    del vocabulary["<pad>"]
    path.write_text(json.dumps(vocabulary), encoding="utf-8")
    line = fails("--preset", folder, "--output", tmp_path / "b")
    assert "Cannot find special token '<pad>'" in line


def test_a_preset_of_an_odd_shape_is_one_line_too(toy_preset, tmp_path):
    folder = copy_preset(toy_preset, tmp_path)
    (folder / "preprocessor.json").write_text(
        json.dumps({"config": {"sequence_length": "long"}}), encoding="utf-8"
    )
    fails("--preset", folder, "--output", tmp_path / "b")


# === What is no model of ours ===


@pytest.mark.parametrize("model", [None, 3, b"opt_tiny_en", ["opt_tiny_en"], object()])
def test_what_is_no_model_is_named(model, tmp_path):
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    with pytest.raises(ValueError, match=f"export_bundle takes a preset.*; got a {name}\\. ") as error:
        export_bundle(model, tmp_path / "bundle")
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.reference
def test_a_model_of_keras_hub_s_is_exported_from_its_folder(hub_model, hub_preset, toy_model, tmp_path):
    for model in (hub_model, hub_model.backbone, toy_model.backbone):
        with pytest.raises(ValueError, match=r"OPTCausalLM\(backbone\).*save_to_preset\(folder\)"):
            export_bundle(model, tmp_path / "bundle")
    for backbone in (hub_model.backbone, hub_model, None):
        with pytest.raises(ValueError, match=r"must be an exporter\.OPTBackbone, got a .*from_preset"):
            OPTCausalLM(backbone)
    export_bundle(hub_preset, tmp_path / "bundle", verify="none")
    assert read_manifest(tmp_path / "bundle").source["format"] == "keras"

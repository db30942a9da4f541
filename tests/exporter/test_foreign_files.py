"""Links in a preset's folder, of which few are followed, and pointers in the place of files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from exporter import foreign_files
from exporter.checkpoints.finite_blocks import finite_blocks
from exporter.errors import CheckpointError, PresetError
from exporter.foreign_files import OWN_FOLDER, find_file
from exporter.presets.folder import read_preset
from tests.faults.good_presets import FORMATS, write_preset
from tests.faults.preset_reading import read_whole_preset
from tests.installed import install, run


def as_cache(preset: Path, root: Path) -> Path:
    """The folder of a snapshot in the layout of `huggingface_hub`: links into `blobs`."""
    blobs, snapshot = root / "blobs", root / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    for i, path in enumerate(sorted(p for p in preset.rglob("*") if p.is_file())):
        place = snapshot / path.relative_to(preset)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blobs / f"{i:040}")
        up = "../" * len(place.relative_to(root).parent.parts)
        place.symlink_to(f"{up}blobs/{i:040}")
    return snapshot


@pytest.mark.parametrize("base", FORMATS)
def test_a_folder_of_the_hubs_cache_is_read_by_its_path(tmp_path, base):
    preset = write_preset(tmp_path / "preset", base)
    snapshot = as_cache(preset, tmp_path / "models--user--name")
    assert (snapshot / "config.json").is_symlink()
    assert read_whole_preset(snapshot) == read_whole_preset(preset) > 0
    (tmp_path / "link").symlink_to(snapshot)
    assert read_whole_preset(tmp_path / "link") > 0


def test_a_blob_must_be_in_the_blobs_of_the_same_repository(tmp_path):
    preset = write_preset(tmp_path / "preset", "safetensors")
    snapshot = as_cache(preset, tmp_path / "models--user--name")
    other = as_cache(preset, tmp_path / "models--other--name")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to((other / "config.json").resolve())
    with pytest.raises(PresetError, match=r"config\.json is a link out of its folder, to .*blobs"):
        read_preset(snapshot)


def test_blobs_that_are_a_link_themselves_lead_out(tmp_path):
    preset = write_preset(tmp_path / "preset", "safetensors")
    snapshot = as_cache(preset, tmp_path / "models--user--name")
    (tmp_path / "models--user--name" / "blobs").rename(tmp_path / "elsewhere")
    (tmp_path / "models--user--name" / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PresetError, match="is a link out of its folder"):
        read_preset(snapshot)


def test_a_link_within_the_folder_is_followed(tmp_path):
    preset = write_preset(tmp_path / "preset", "safetensors")
    (preset / "model.safetensors").rename(preset / "weights")
    (preset / "model.safetensors").symlink_to("weights")
    assert read_whole_preset(preset) > 0


def test_what_came_with_the_package_may_be_links_and_a_strangers_not(tmp_path, monkeypatch):
    """`uv --link-mode symlink` makes each installed file a link into its cache."""
    linked, others = tmp_path / "linked", tmp_path / "others"
    for folder in (linked, others):
        shutil.copytree(OWN_FOLDER, folder, copy_function=os.symlink)
    with pytest.raises(PresetError, match=r"config\.json is a link out of its folder"):
        read_preset(linked)
    monkeypatch.setattr(foreign_files, "OWN_FOLDER", linked)
    assert read_whole_preset(linked) == read_whole_preset(OWN_FOLDER) > 0
    (tmp_path / "environment").symlink_to(linked)
    assert read_whole_preset(tmp_path / "environment") > 0
    for folder in (others, linked / "assets", tmp_path / "linked" / ".." / "others"):
        with pytest.raises(PresetError, match=r"is a link out of its folder|is not a preset folder"):
            read_preset(folder)


def test_hard_links_are_files(tmp_path):
    preset = write_preset(tmp_path / "preset", "safetensors")
    shutil.copytree(preset, tmp_path / "linked", copy_function=os.link)
    assert read_whole_preset(tmp_path / "linked") == read_whole_preset(preset) > 0


def test_an_installation_by_links_reads_its_preset(tmp_path):
    commands = install(tmp_path / "linked", links=True)
    program = (
        "from exporter.presets.handles import resolve_preset\n"
        "from exporter.presets.folder import read_preset\n"
        "preset = read_preset(resolve_preset('opt_tiny_en'))\n"
        "reader, targets = preset.open_weights()\n"
        "print(preset.folder, len(targets))\n"
    )
    done = run([commands / "python3", "-c", program], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'linked'}")


def test_what_is_not_there(tmp_path):
    assert find_file(tmp_path, "config.json", PresetError) is None
    assert find_file(tmp_path / "nothing", "config.json", PresetError) is None
    with pytest.raises(CheckpointError, match="is not a regular file"):
        find_file(tmp_path.parent, tmp_path.name, CheckpointError)


# === Values that are no numbers ===


@pytest.mark.parametrize(("value", "count"), [(np.nan, 1), (np.inf, 2), (-np.inf, 3)])
def test_values_that_are_no_numbers_are_counted(value, count):
    block = np.ones((4, 3), np.float32)
    block.ravel()[:count] = value
    blocks = finite_blocks([np.ones(2, np.float32), block], "tensor a")
    assert next(blocks).tolist() == [1, 1]
    with pytest.raises(CheckpointError) as raised:
        next(blocks)
    assert str(raised.value).startswith(
        f"tensor a has {count} values that are NaN or infinite among 12 read at once"
    )


def test_infinities_that_cancel_and_sums_that_overflow():
    largest = np.full(100, np.finfo(np.float32).max)
    assert [block is largest for block in finite_blocks([largest], "a")] == [True]
    with pytest.raises(CheckpointError, match="has 2 values"):
        list(finite_blocks([np.array([np.inf, -np.inf, 1], np.float32)], "a"))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 12345\n"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("h5", "config.json"),
        ("h5", "model.weights.h5"),
        ("h5", "tokenizer.json"),
        ("h5", "preprocessor.json"),
        ("h5", "assets/tokenizer/vocabulary.json"),
        ("h5", "assets/tokenizer/merges.txt"),
        ("safetensors", "config.json"),
        ("safetensors", "model.safetensors"),
        ("safetensors", "vocab.json"),
        ("safetensors", "merges.txt"),
        ("safetensors", "tokenizer.json"),
        ("safetensors", "tokenizer_config.json"),
        ("torch", "pytorch_model.bin"),
        ("shards", "model.safetensors.index.json"),
        ("shards", "model-00002-of-*.safetensors"),
    ],
)
def test_a_pointer_of_git_lfs_is_called_one_in_the_place_of_any_file(tmp_path, kind, name):
    preset = write_preset(tmp_path / "preset", kind)
    path = next(preset.glob(name), preset / name)
    path.write_text(POINTER, encoding="utf-8")
    with pytest.raises((CheckpointError, PresetError)) as raised:
        read_whole_preset(preset)
    assert str(raised.value) == (
        f"{path} is a pointer of Git LFS, which stands for the file until it is fetched; run "
        "`git lfs pull` in its repository"
    )

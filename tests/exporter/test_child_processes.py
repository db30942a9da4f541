"""The processes that an export starts, in a stranger's working folder, preset and bundle."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from exporter.checkpoints.h5_check import check_in_child
from exporter.foreign_files import OWN_FOLDER
from exporter.verification import run_probe
from tests.installed import make_hostile


@pytest.mark.parametrize("entry", ["", ".", None])
def test_a_checkpoint_is_tried_without_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str | None
) -> None:
    """In its folder, and in another with the checkpoint's first among the places of imports."""
    folder = tmp_path / "preset"
    marker = make_hostile(folder)
    shutil.copy(OWN_FOLDER / "model.weights.h5", folder)
    monkeypatch.setattr(sys, "path", [str(folder) if entry is None else entry, *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(folder) if entry is None else os.pathsep)
    monkeypatch.chdir(tmp_path if entry is None else folder)
    check_in_child(folder / "model.weights.h5")
    assert not marker.exists(), marker.read_text()


@pytest.mark.parametrize("entry", ["", None])
def test_a_bundle_is_tried_without_its_modules(
    toy_bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, entry: str | None
) -> None:
    marker = make_hostile(toy_bundle_copy)
    path = str(toy_bundle_copy) if entry is None else os.pathsep
    monkeypatch.setattr(sys, "path", [path if entry is None else entry, *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.chdir(toy_bundle_copy)
    assert run_probe(toy_bundle_copy) is not None
    assert not marker.exists(), marker.read_text()

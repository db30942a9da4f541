"""Paths of any bytes for libraries that take text."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from graphs.native_path import native_path

linux = pytest.mark.skipif(sys.platform != "linux", reason="names of files are any bytes on Linux")


@pytest.mark.parametrize("name", ["plain", "with space", "Zoë 模型 😀"])
def test_text_stays_as_it_is(tmp_path: Path, name: str) -> None:
    with native_path(tmp_path / name) as path:
        assert path == str(tmp_path / name)
    with native_path(Path(name)) as path:
        assert path == name


@linux
def test_other_bytes_are_reached_through_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "file").write_text("here")
    before = len(os.listdir("/dev/fd"))
    with native_path(folder / "file") as path:
        path.encode("utf-8")
        assert Path(path).read_text() == "here"
        Path(path).with_name("new").write_text("beside it")
    assert len(os.listdir("/dev/fd")) == before
    assert (folder / "new").read_text() == "beside it"


@linux
def test_what_python_could_not_read_in_an_ascii_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsencode", lambda path: str(path).encode("ascii", "surrogateescape"))
    with native_path(Path("Zo\udcc3\udcab/file")) as path:
        assert path == "Zoë/file"


@linux
def test_a_file_whose_own_name_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(OSError, match="is no name in UTF-8, which"), native_path(path):
        pass

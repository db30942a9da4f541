"""Reading what a shared library needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.gpu.elf_file import needed_libraries

COMPILER = shutil.which("cc")


def build(path: Path, soname: str, *needed: Path) -> Path:
    source = path.with_suffix(".c")
    source.write_text("int number;")
    names = ["-Wl,--no-as-needed", *map(str, needed), f"-Wl,-soname,{soname}"]
    command = [str(COMPILER), "-shared", "-fPIC", "-nostdlib", "-o", str(path), str(source), *names]
    subprocess.run(command, check=True)
    return path


@pytest.mark.skipif(sys.platform != "linux" or COMPILER is None, reason="needs Linux and a C compiler")
def test_needed_libraries(tmp_path: Path) -> None:
    first = build(tmp_path / "first.so", "libfirst.so.7")
    second = build(tmp_path / "second.so", "libsecond-with-a-longer-name.so.10", first)
    both = build(tmp_path / "both.so", "libboth.so", second, first)
    assert needed_libraries(first) == []
    assert needed_libraries(second) == ["libfirst.so.7"]
    # Their names are needed, not the files: they do not have to be there.
    first.unlink()
    assert needed_libraries(both) == ["libsecond-with-a-longer-name.so.10", "libfirst.so.7"]


@pytest.mark.parametrize("content", [b"MZ" + bytes(100), b"\x7fELF\x01\x01" + bytes(100)])
def test_what_is_no_such_library(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"library\.so is no library for 64-bit"):
        needed_libraries(path)

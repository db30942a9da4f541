"""A libcudart in C whose GPUs are in the host's memory, compiled where there is a compiler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("stub_cudart.c")
MEMORY = 1 << 20


class StubCuda:
    """The compiled library, and what it may be told to do."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._library = ctypes.CDLL(self.path)
        self._library.stub_used.restype = ctypes.c_size_t

    def reset(
        self, devices: int = 1, driver: int = 13000, runtime: int = 13000, memory: int = MEMORY
    ) -> None:
        """Sets what there is; a driver of 0 is none."""
        self._library.stub_reset(devices, driver, runtime, ctypes.c_size_t(memory))

    def fail(self, function: str, code: int) -> None:
        """Lets a function fail from now on; `""` lets none."""
        self._library.stub_fail(function.encode(), code)

    def ask(self, name: str) -> int:
        """Counts `waits`, `selections`, `locked` buffers, `used` bytes; `device` and `last_error`."""
        return int(getattr(self._library, f"stub_{name}")())


def compile_stub(folder: Path) -> Path:
    """The library's path; skips the test without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler, to build a libcudart without a GPU")
    path = folder / "libcudart.so.13"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", path, SOURCE], check=True)
    return path

"""The peak of this process's memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.system import memory
from runtime.system.memory import ResidentMemory, peak_memory_bytes, resident_memory

MIB = 1024 * 1024


def test_the_peak_grows_with_what_is_used_and_stays() -> None:
    program = (
        "from runtime.system.memory import peak_memory_bytes as peak\n"
        "before = peak()\n"
        "block = bytearray(b'x') * (64 * 1024 * 1024)\n"
        "during = peak()\n"
        "del block\n"
        "print(before, during, peak())\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, during, after = map(int, result.stdout.split())
    assert 4 * MIB < before < 1024 * MIB
    assert 60 * MIB < during - before < 80 * MIB
    assert after > before + 60 * MIB  # the kernel counts loosely: not always as much as `during`


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux has the kernel's mark")
def test_linux_gives_the_mark_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Name:\tpython\nVmPeak:\t  900 kB\nVmHWM:\t  1234 kB\nVmRSS:\t 1000 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert peak_memory_bytes() == 1234 * 1024


def test_what_is_in_ram_now(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Name:\tpython\nVmRSS:\t 900 kB\nRssAnon:\t  300 kB\nRssFile:\t  600 kB\nThreads:\t1\n"
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert resident_memory() == ResidentMemory(900 * 1024, 300 * 1024, 600 * 1024)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert resident_memory() is None


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_elsewhere_it_is_getrusage(monkeypatch: pytest.MonkeyPatch, platform: str, unit: int) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)
    monkeypatch.setattr(memory.sys, "platform", platform)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    assert peak_memory_bytes() == usage.ru_maxrss * unit

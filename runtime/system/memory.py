"""How much memory this process has used."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class ResidentMemory:
    """Memory of this process that is in RAM now, in bytes.

    Attributes:
        total: all of it.
        private: not backed by a file: what a second process of the same kind would need again.
        mapped: pages of mapped files, libraries included, which processes share.
    """

    total: int
    private: int
    mapped: int


def resident_memory() -> ResidentMemory | None:
    """What is in RAM now; `None` where the kernel does not tell."""
    values = _status_bytes()
    if "RssAnon" not in values:
        return None
    return ResidentMemory(values["VmRSS"], values["RssAnon"], values["RssFile"])


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far, mapped files included.

    On Linux the kernel's own mark of this program: `getrusage` also counts the program that started
    this one.
    """
    values = _status_bytes()
    if "VmHWM" in values:
        return values["VmHWM"]
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status_bytes() -> dict[str, int]:
    """The sizes that Linux tells of this process, by its names; empty elsewhere."""
    if not STATUS.exists():
        return {}
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}

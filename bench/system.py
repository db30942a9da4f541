"""What a measurement ran on: the hardware."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hardware:
    """This machine.

    Attributes:
        cpu: the processor's model.
        cores: logical ones that this process may use.
        memory_bytes: of the machine; 0 where it cannot be told.
        system: operating system and architecture.
    """

    cpu: str
    cores: int
    memory_bytes: int
    system: str

    def __str__(self) -> str:
        memory = f"{self.memory_bytes / 1e9:.1f} GB, " if self.memory_bytes else ""
        return f"{self.cpu}, {self.cores} cores, {memory}{self.system}"


def describe_hardware() -> Hardware:
    """The machine that this process runs on."""
    return Hardware(
        cpu=_cpu_model(),
        cores=_usable_cores(),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.machine()}",
    )


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has none of it
        return 0

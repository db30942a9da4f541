"""How much more memory this process may take before the kernel would kill one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from runtime.system.control_groups import ROOT, ControlGroup, control_groups, read_text

# What a group uses that is no file page, or one that the kernel can drop.
_FILE_PAGES = {1: ("total_inactive_file", "total_active_file"), 2: ("inactive_file", "active_file")}
_LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_USED = {1: "memory.usage_in_bytes", 2: "memory.current"}


def available_memory_bytes(root: Path = ROOT) -> int | None:
    """Memory that can be taken without swapping, in bytes; `None` where the system does not tell.

    On Linux: what the machine has available, at most what is left in the process's control groups, a
    container's say, and of its address space (`ulimit -v`). Pages of files count as available: the
    kernel drops them when memory is short.

    Args:
        root: where `/proc` and `/sys` are.
    """
    figures = [*_machine(root), *_groups(root), *_address_space(root)]
    return max(0, min(figures)) if figures else None


def address_space_is_limited(root: Path = ROOT) -> bool:
    """Whether memory counts as taken before it is written to.

    As under `ulimit -v`, where Linux is told to promise no more than it has, and on Windows.
    """
    strict = read_text(root / "proc/sys/vm/overcommit_memory") == "2"
    return strict or os.name == "nt" or bool([*_address_space(root)])


def _machine(root: Path) -> Iterator[int]:
    for line in read_text(root / "proc/meminfo").splitlines():
        words = line.split()
        if words[0] == "MemAvailable:" and words[1].isdecimal():
            yield int(words[1]) * 1024


def _groups(root: Path) -> Iterator[int]:
    for group in control_groups("memory", root):
        limit, used = group.read(_LIMIT[group.version]), group.read(_USED[group.version])
        if limit.isdecimal() and used.isdecimal():  # "max" is no limit
            yield int(limit) - int(used) + _file_pages(group)


def _file_pages(group: ControlGroup) -> int:
    rows = (line.split() for line in group.read("memory.stat").splitlines())
    names = _FILE_PAGES[group.version]
    return sum(int(row[1]) for row in rows if len(row) == 2 and row[0] in names)


def _address_space(root: Path) -> Iterator[int]:
    for line in read_text(root / "proc/self/limits").splitlines():
        limit = line.removeprefix("Max address space").split()[:1]
        if limit and limit[0].isdecimal() and line.startswith("Max address space"):
            used = read_text(root / "proc/self/statm").split()[:1]
            yield int(limit[0]) - sum(int(pages) for pages in used) * _PAGE_BYTES

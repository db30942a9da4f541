"""How many threads a step should use on this machine, in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
CPU_FOLDER = "sys/devices/system/cpu"
CGROUP_FOLDER = "sys/fs/cgroup"


def available_cores(root: Path = ROOT) -> int | None:
    """Physical cores that this process may use, at least 1; `None` where that cannot be told.

    On Linux: the cores of the processors that the process may run on (a core's hyper-threads share
    its arithmetic units, so they count as one), at most as many as its control groups, a container's
    say, allow CPU time for. A quota of 2.5 CPUs gives 2: a third thread would be stopped in the
    middle of steps while the others wait for it.

    Args:
        root: where `/proc` and `/sys` are.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = _physical_cores(os.sched_getaffinity(0), root)
    return max(1, min([cores, *(int(quota) for quota in _quotas(root))]))


def _physical_cores(processors: set[int], root: Path) -> int:
    return len({_siblings(processor, root) for processor in processors})


def _siblings(processor: int, root: Path) -> str:
    """The processors of the same core, as the kernel writes them: the same text for each of them."""
    folder = root / CPU_FOLDER / f"cpu{processor}" / "topology"
    siblings = _read(folder / "core_cpus_list") or _read(folder / "thread_siblings_list")
    return siblings or f"{processor}"


def _quotas(root: Path) -> Iterator[float]:
    """CPUs' worth of time that each control group of this process allows."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, group = line.split(":", 2)
        names = controllers.split(",")
        if number == "0" and not controllers:  # version 2: one hierarchy
            for folder in _lineage(root / CGROUP_FOLDER, group):
                yield from _quota(_read(folder / "cpu.max").split())
        elif "cpu" in names:
            for mount in dict.fromkeys((controllers, "cpu")):
                for folder in _lineage(root / CGROUP_FOLDER / mount, group):
                    files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                    yield from _quota([_read(folder / name) for name in files])


def _lineage(mount: Path, group: str) -> Iterator[Path]:
    """A group's folder and those above it. In a container only the mount itself may be there."""
    folder = mount / group.lstrip("/")
    while folder != mount and mount in folder.parents:
        yield folder
        folder = folder.parent
    yield mount


def _quota(values: list[str]) -> Iterator[float]:
    if len(values) == 2 and all(value.isdecimal() for value in values) and int(values[1]):
        yield int(values[0]) / int(values[1])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""

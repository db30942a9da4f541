"""How many threads a step should use on this machine, in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from runtime.system.control_groups import ROOT, control_groups, read_text

CPU_FOLDER = "sys/devices/system/cpu"


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
    siblings = read_text(folder / "core_cpus_list") or read_text(folder / "thread_siblings_list")
    return siblings or f"{processor}"


def _quotas(root: Path) -> Iterator[float]:
    """CPUs' worth of time that each control group of this process allows."""
    for group in control_groups("cpu", root):
        if group.version == 2:
            yield from _quota(group.read("cpu.max").split())
        else:
            yield from _quota([group.read("cpu.cfs_quota_us"), group.read("cpu.cfs_period_us")])


def _quota(values: list[str]) -> Iterator[float]:
    if len(values) == 2 and all(value.isdecimal() for value in values) and int(values[1]):
        yield int(values[0]) / int(values[1])

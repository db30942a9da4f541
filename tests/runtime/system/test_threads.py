"""The number of threads: physical cores, where the process may run, and what a container allows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtime import session_opener
from runtime.bundle import Bundle
from runtime.session import SessionDecoder
from runtime.system.threads import available_cores

EIGHT = range(8)
# Processors 0 and 4, 1 and 5, … are one core each.
SIBLINGS = {processor: f"{processor % 4},{processor % 4 + 4}" for processor in EIGHT}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", "utf-8")


def topology(siblings: dict[int, str], file: str = "core_cpus_list") -> dict[str, str]:
    folder = "sys/devices/system/cpu/cpu{}/topology/{}"
    return {folder.format(number, file): text for number, text in siblings.items()}


@pytest.fixture
def affinity(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the processors that the process may run on."""

    def allow(*processors: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(processors), raising=False)

    return allow


@pytest.mark.parametrize(
    ("allowed", "cores"), [(EIGHT, 4), ([0, 1, 2], 3), ([0, 4], 1), ([0, 4, 5], 2), ([7], 1)]
)
@pytest.mark.parametrize("file", ["core_cpus_list", "thread_siblings_list"])
def test_hyper_threads_count_as_one(
    tmp_path: Path, affinity: Any, allowed: list[int], cores: int, file: str
) -> None:
    write(tmp_path, topology(SIBLINGS, file))
    affinity(*allowed)
    assert available_cores(tmp_path) == cores


def test_without_topology_every_processor_counts(tmp_path: Path, affinity: Any) -> None:
    affinity(0, 1, 2)
    assert available_cores(tmp_path) == 3


TWO = "sys/fs/cgroup"
QUOTAS: dict[str, tuple[dict[str, str], int]] = {
    "version 2": ({"proc/self/cgroup": "0::/", f"{TWO}/cpu.max": "200000 100000"}, 2),
    "no limit": ({"proc/self/cgroup": "0::/", f"{TWO}/cpu.max": "max 100000"}, 4),
    "more than there is": ({"proc/self/cgroup": "0::/", f"{TWO}/cpu.max": "6400000 100000"}, 4),
    "a part of a core": ({"proc/self/cgroup": "0::/", f"{TWO}/cpu.max": "50000 100000"}, 1),
    "two and a half": ({"proc/self/cgroup": "0::/", f"{TWO}/cpu.max": "250000 100000"}, 2),
    "a group above": (
        {"proc/self/cgroup": "0::/a/b", f"{TWO}/a/b/cpu.max": "max 100000", f"{TWO}/a/cpu.max": "3 1"},
        3,
    ),
    "the tightest": (
        {"proc/self/cgroup": "0::/a/b", f"{TWO}/a/b/cpu.max": "2 1", f"{TWO}/a/cpu.max": "3 1"},
        2,
    ),
    "a group beyond the container": (
        {"proc/self/cgroup": "0::/../../system", f"{TWO}/cpu.max": "3 1"},
        3,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/docker/1\n0::/",
            f"{TWO}/cpu,cpuacct/cpu.cfs_quota_us": "200000",
            f"{TWO}/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        2,
    ),
    "version 1, another name": (
        {
            "proc/self/cgroup": "4:cpuacct,cpu:/docker/1",
            f"{TWO}/cpu/docker/1/cpu.cfs_quota_us": "100000",
            f"{TWO}/cpu/docker/1/cpu.cfs_period_us": "100000",
        },
        1,
    ),
    "version 1 without a limit": (
        {
            "proc/self/cgroup": "4:cpu:/",
            f"{TWO}/cpu/cpu.cfs_quota_us": "-1",
            f"{TWO}/cpu/cpu.cfs_period_us": "100000",
        },
        4,
    ),
    "nonsense": ({"proc/self/cgroup": "0::/", f"{TWO}/cpu.max": "1 0"}, 4),
    "another controller": ({"proc/self/cgroup": "4:cpuset:/", f"{TWO}/cpu.max": "1 1"}, 4),
}


@pytest.mark.parametrize(("files", "cores"), QUOTAS.values(), ids=QUOTAS)
def test_the_time_that_control_groups_allow(
    tmp_path: Path, affinity: Any, files: dict[str, str], cores: int
) -> None:
    write(tmp_path, {**topology(SIBLINGS), **files})
    affinity(*EIGHT)
    assert available_cores(tmp_path) == cores


def test_other_systems_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert available_cores() is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
def test_this_machine() -> None:
    assert 1 <= (available_cores() or 0) <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("given", "known", "used"), [(None, 3, 3), (None, None, 0), (5, 3, 5)])
def test_sessions_get_that_many(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, given: int | None, known: int | None, used: int
) -> None:
    found = []
    options = session_opener.SessionOpener._options

    def recorded(self: Any, entries: Any = None) -> Any:
        made = options(self, entries)
        found.append(made.intra_op_num_threads)
        return made

    monkeypatch.setattr(session_opener.SessionOpener, "_options", recorded)
    monkeypatch.setattr(session_opener, "available_cores", lambda: known)
    SessionDecoder(bundle, threads=given)
    assert found == [used, used]

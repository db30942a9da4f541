"""Available memory, by the machine and by control groups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.system.available_memory import address_space_is_limited, available_memory_bytes

GB = 10**9
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 24000000 kB\nMemFree: 5 kB\nMemAvailable:   20000000 kB\n"}
GROUP_2 = {
    "proc/self/cgroup": "0::/pod/container\n",
    "sys/fs/cgroup/pod/container/memory.max": "max\n",
    "sys/fs/cgroup/pod/container/memory.current": f"{3 * GB}\n",
    "sys/fs/cgroup/pod/memory.max": f"{8 * GB}\n",
    "sys/fs/cgroup/pod/memory.current": f"{5 * GB}\n",
    "sys/fs/cgroup/pod/memory.stat": f"anon {3 * GB}\ninactive_file {GB}\nactive_file {GB // 2}\n",
}
GROUP_1 = {
    "proc/self/cgroup": "4:memory:/box\n1:cpu:/box\n0::/\n",
    "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{4 * GB}\n",
    "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{3 * GB}\n",
    "sys/fs/cgroup/memory/box/memory.stat": f"inactive_file 1\ntotal_inactive_file {GB // 4}\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
}
ADDRESS_SPACE = {
    "proc/self/limits": "Limit                     Soft Limit           Hard Limit           Units\n"
    "Max data size             unlimited            unlimited            bytes\n"
    f"Max address space         {2 * GB}           unlimited            bytes\n",
    "proc/self/statm": f"{GB // PAGE} 5 5 5 0 5 0\n",
}
NO_LIMIT = {"proc/self/limits": "Max address space         unlimited   unlimited   bytes\n"}


@pytest.mark.parametrize(
    ("files", "available"),
    [
        (MACHINE, 20_480_000_000),
        ({**MACHINE, **GROUP_2}, 8 * GB - 5 * GB + GB + GB // 2),
        ({**MACHINE, **GROUP_1}, GB + GB // 4),
        ({**MACHINE, "proc/self/cgroup": "0::/gone\n"}, 20_480_000_000),
        ({**GROUP_1, "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{5 * GB}\n"}, 0),
        ({**MACHINE, **ADDRESS_SPACE}, 2 * GB - GB // PAGE * PAGE),
        ({**MACHINE, **ADDRESS_SPACE, **NO_LIMIT}, 20_480_000_000),
        ({"proc/meminfo": "MemTotal: 24000000 kB\n"}, None),
        ({}, None),
    ],
)
def test_the_tightest_figure_counts(
    tmp_path: Path, files: dict[str, str], available: int | None
) -> None:
    assert available_memory_bytes(write(tmp_path, files)) == available


@pytest.mark.skipif(os.name == "nt", reason="Windows always counts so")
@pytest.mark.parametrize(
    ("files", "limited"),
    [
        (ADDRESS_SPACE, True),
        (NO_LIMIT, False),
        ({}, False),
        ({**NO_LIMIT, "proc/sys/vm/overcommit_memory": "2\n"}, True),
        ({**NO_LIMIT, "proc/sys/vm/overcommit_memory": "0\n"}, False),
        ({**NO_LIMIT, "proc/sys/vm/overcommit_memory": "1\n"}, False),
    ],
)
def test_where_memory_counts_before_it_is_used(
    tmp_path: Path, files: dict[str, str], limited: bool
) -> None:
    assert address_space_is_limited(write(tmp_path, files)) == limited


def test_this_machine() -> None:
    available = available_memory_bytes()
    assert available is None or available > 10**6

"""How much memory this process has used."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far, mapped files included.

    On Linux the kernel's own mark of this program: `getrusage` also counts the program that started
    this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

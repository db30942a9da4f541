"""What a CPU can do, as far as the layout of packed weights may depend on it."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_FIELDS_OF_X86 = ("vendor_id", "cpu family", "model", "model name", "flags")
_FIELDS_OF_ARM = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features")


def cpu_features(cpuinfo: Path = CPUINFO) -> str:
    """Model and instruction sets of this machine's CPU, in one line of text.

    On Linux from the kernel's description of the first processor; elsewhere what `platform` knows.
    """
    values = [platform.machine()]
    try:
        first = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    except OSError:
        return f"{values[0]} {platform.processor()}".strip()
    for line in first.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in _FIELDS_OF_X86 + _FIELDS_OF_ARM:
            values.append(value.strip())
    return " | ".join(values)


def sums_8_bit_products_exactly(cpuinfo: Path = CPUINFO) -> bool:
    """Whether products of unsigned and signed 8-bit numbers cannot overflow on this CPU.

    x86 CPUs without the VNNI instructions add pairs of them in 16 bits, which saturates.
    """
    features = cpu_features(cpuinfo)
    is_x86 = features.split()[0].lower() in ("x86_64", "amd64", "i386", "i686", "x86")
    return not is_x86 or "vnni" in features

"""The device that a bundle runs on: what a caller may ask for, and what a bundle was exported for."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Literal

from graphs.shown import shown
from runtime.errors import RuntimeMissingError
from runtime.log import tell

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        kind: `"cpu"` or `"cuda"`.
        index: of the GPU among those that this process may use; 0 for the CPU.
    """

    kind: Literal["cpu", "cuda"]
    index: int = 0

    @property
    def name(self) -> str:
        """`"cpu"` or `"cuda:1"`."""
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"

    @property
    def provider(self) -> str:
        """ONNX Runtime's name for the kind."""
        return PROVIDERS[self.kind]


CPU = Device("cpu")


def choose_device(device: str, target: str, precision: str) -> Device:
    """The device that a bundle is to run on.

    Args:
        device: `"cpu"`; `"cuda"`, which is `"cuda:0"`, or another GPU's number; `"auto"` for a GPU if
            the bundle was exported for one and it can be used, else the CPU.
        target: the bundle's, as its manifest has it.
        precision: the bundle's, as its manifest has it.

    Raises:
        ValueError: if there is no such device, or the bundle does not run on that kind.
        RuntimeMissingError: if the GPU cannot be used; says what is missing.

    Warns:
        RuntimeWarning: if `"auto"` takes the CPU for a bundle that was exported for GPUs.
    """
    asked = _parse(device)
    if asked is None:
        return _automatic(target, precision)
    if asked.kind == "cuda":
        if target == "cpu":
            raise ValueError(
                f"device={device!r}: the bundle was exported for CPUs; export it with --target cuda, "
                "or with --target portable in fp32"
            )
        gpu = _require_cuda(asked.index)
        tell(f"device={device!r} is {gpu}")
    elif precision == "bf16":
        raise ValueError(
            f"device={device!r}: the bundle is in bf16, and ONNX Runtime has no bfloat16 kernels for "
            "CPUs; export it with --precision fp16"
        )
    return asked


def _parse(device: str) -> Device | None:
    """What a caller asked for; `None` for `"auto"`."""
    match = (
        re.fullmatch(r"auto|cpu|cuda(?::(0|[1-9][0-9]{0,5}))?", device) if type(device) is str else None
    )
    if match is None:
        raise ValueError(
            f"device must be one of auto, cpu, cuda and cuda:N for GPU number N; got {shown(device)}"
        )
    if match[0] == "auto":
        return None
    return CPU if match[0] == "cpu" else Device("cuda", int(match[1] or 0))


def _automatic(target: str, precision: str) -> Device:
    if target != "cuda":
        return CPU
    device = Device("cuda")
    try:
        gpu = _require_cuda(device.index)
    except RuntimeMissingError as error:
        if precision == "bf16":  # there is no other
            raise
        warnings.warn(
            "device='auto' takes the CPU, on which a bundle for GPUs is slow and good for checks only: "
            f"{error}",
            RuntimeWarning,
            stacklevel=3,
        )
        return CPU
    tell(f"device='auto' takes {device.name}, {gpu}")
    return device


def _require_cuda(index: int) -> str:
    # CPUs need nothing of it, and it takes milliseconds of every start.
    from runtime.gpu.requirements import require_cuda

    return require_cuda(index)

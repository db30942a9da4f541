"""The systems that can be compared: which worker runs each, on which kind of checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class System:
    """One system.

    Attributes:
        name: as on the command line and in reports.
        module: of its worker.
        checkpoint: kind of folder that it loads: `"bundle"`, `"huggingface"` or `"keras"`.
        options: of the worker's job.
    """

    name: str
    module: str
    checkpoint: str
    options: dict[str, Any] = field(default_factory=dict)


SYSTEMS = {
    system.name: system
    for system in (
        System("opt-onnx", "bench.workers.opt_onnx", "bundle"),
        System("keras-hub", "bench.workers.keras_hub", "keras"),
        System("keras-hub-xla", "bench.workers.keras_hub", "keras", {"jit_compile": True}),
        System("transformers", "bench.workers.transformers", "huggingface"),
    )
}

"""Serves exported OPT bundles: tokenizer, sampling and generation around ONNX Runtime.

Needs numpy, tokenizers and ONNX Runtime (`pip install 'opt-onnx[cpu]'` or `'opt-onnx[gpu]'`).
"""

# ruff: noqa: E402
from runtime.own_packages import check_packages  # first, see there

check_packages("graphs")

from typing import TYPE_CHECKING, Any

from runtime import samplers
from runtime.errors import (
    BundleError,
    CacheMemoryError,
    DeviceMemoryError,
    ForkedProcessError,
    GenerationCancelledError,
    GenerationTimeoutError,
    LogitsError,
    NodePlacementError,
    RuntimeMissingError,
)
from runtime.generator import Generator
from runtime.results import GenerationResult

if TYPE_CHECKING:
    from runtime.generation_options import GenerationOptions

__all__ = [
    "BundleError",
    "CacheMemoryError",
    "DeviceMemoryError",
    "ForkedProcessError",
    "GenerationCancelledError",
    "GenerationOptions",
    "GenerationResult",
    "GenerationTimeoutError",
    "Generator",
    "LogitsError",
    "NodePlacementError",
    "RuntimeMissingError",
    "samplers",
]


def __getattr__(name: str) -> Any:
    # Who asks for no options does not wait for them to be imported.
    if name == "GenerationOptions":
        from runtime.generation_options import GenerationOptions

        return GenerationOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

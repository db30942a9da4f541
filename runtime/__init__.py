"""Serves exported OPT bundles: tokenizer, sampling and generation around ONNX Runtime.

Needs numpy, tokenizers and ONNX Runtime (`pip install 'opt-onnx[cpu]'` or `'opt-onnx[gpu]'`).
"""

# ruff: noqa: E402
from runtime.own_packages import check_packages  # first, see there

check_packages("graphs")

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

__all__ = [
    "BundleError",
    "CacheMemoryError",
    "DeviceMemoryError",
    "ForkedProcessError",
    "GenerationCancelledError",
    "GenerationResult",
    "GenerationTimeoutError",
    "Generator",
    "LogitsError",
    "NodePlacementError",
    "RuntimeMissingError",
    "samplers",
]

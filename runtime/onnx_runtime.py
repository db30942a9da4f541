"""The one import of onnxruntime, whose error says what to install."""

from __future__ import annotations

import os

from runtime.errors import RuntimeMissingError

__all__ = ["ort"]

# ONNX Runtime reports usage to its makers unless told otherwise; who wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime as ort
except ImportError as error:
    raise RuntimeMissingError(
        f"ONNX Runtime is not installed or does not load ({error}). Install one "
        "flavour of it: pip install 'opt-onnx[cpu]' for CPUs, or pip install 'opt-onnx[gpu]' for "
        "NVIDIA GPUs"
    ) from error

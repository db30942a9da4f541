"""Exports OPT models from Keras 3 (on TensorFlow) to ONNX bundles, and holds the Keras OPT family.

The names below load Keras and TensorFlow when they are first used, so that importing the package
(as `opt-export --help` does) stays quick.
"""

# ruff: noqa: E402
import sys

try:
    from runtime.own_packages import check_packages  # first, see there
except ModuleNotFoundError as error:
    if error.name != "runtime.own_packages":
        raise
    raise ImportError(
        f"{getattr(sys.modules['runtime'], '__file__', None)} is found where opt-onnx needs its own "
        "package 'runtime'; rename it, or put the folder of opt-onnx before its folder on Python's "
        "search path"
    ) from None
check_packages("graphs", "runtime")

import importlib
import os
from typing import Any

# Before anything imports TensorFlow: its C++ side otherwise greets with a page of notices.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

_HOMES = {
    "CausalLM": "exporter.opt.causal_lm",
    "OPTBackbone": "exporter.opt.backbone",
    "OPTCausalLM": "exporter.opt.causal_lm",
    "OPTCausalLMPreprocessor": "exporter.opt.preprocessor",
    "OPTTokenizer": "exporter.opt.tokenizer",
    "export_bundle": "exporter.export",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

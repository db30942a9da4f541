"""The one import of llguidance, whose error says what to install."""

from __future__ import annotations

from types import ModuleType


def import_llguidance() -> ModuleType:
    """The package llguidance; `ImportError` with what to install where it is not."""
    try:
        import llguidance
    except ImportError as error:
        raise ImportError(
            f"structured output needs llguidance, which is not installed or does not load ({error}): "
            "pip install 'opt-onnx[structured]'"
        ) from error
    return llguidance

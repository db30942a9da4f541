"""Errors that a caller can act on."""

from __future__ import annotations


class BundleError(ValueError):
    """A bundle cannot be used: it is not one, is incomplete, was altered, or is of another revision."""


class RuntimeMissingError(ImportError):
    """ONNX Runtime is not installed, or lacks what was asked for."""

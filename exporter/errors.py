"""Errors that a caller of the exporter can act on."""

from __future__ import annotations


class PresetError(ValueError):
    """A preset cannot be used: unknown, incomplete, or not an OPT model."""


class CheckpointError(ValueError):
    """A checkpoint's tensors cannot be used: missing, surplus, mis-shaped or truncated."""


class ExportError(RuntimeError):
    """An export cannot go on: the output exists, the disk is too small, or verification failed."""


def full_name(cls: type) -> str:
    """A class's name with its module's, to tell classes of one name apart."""
    return f"{cls.__module__}.{cls.__qualname__}"

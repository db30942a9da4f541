"""Errors that a caller can act on."""

from __future__ import annotations


class BundleError(ValueError):
    """A bundle cannot be used: it is not one, is incomplete, was altered, or is of another revision."""


class NodePlacementError(BundleError):
    """Parts of a bundle's graph would run on the CPU, where a device was asked for."""


class RuntimeMissingError(ImportError):
    """ONNX Runtime is not installed, or lacks what was asked for."""


class CacheMemoryError(RuntimeError):
    """A KV cache would not fit; nothing of it was allocated.

    Attributes:
        needed: bytes of the cache that was asked for.
        allowed: bytes that it could have had.
    """

    def __init__(self, message: str, needed: int, allowed: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.allowed = allowed

    def __reduce__(self) -> tuple[type[CacheMemoryError], tuple[str, int, int]]:
        return type(self), (str(self), self.needed, self.allowed)


class DeviceMemoryError(RuntimeError):
    """A buffer does not fit in a device's memory; nothing was allocated.

    Attributes:
        needed: bytes that were asked for.
        available: bytes that the device had left; `None` where it does not tell.
    """

    def __init__(self, message: str, needed: int, available: int | None) -> None:
        super().__init__(message)
        self.needed = needed
        self.available = available

    def __reduce__(self) -> tuple[type[DeviceMemoryError], tuple[str, int, int | None]]:
        return type(self), (str(self), self.needed, self.available)


class LogitsError(RuntimeError):
    """The model gave logits that are no finite numbers, by which no token can be chosen."""


class StructuredOutputError(RuntimeError):
    """A text cannot go on as its description wants it: nothing may follow, or that takes too much."""


class GenerationTimeoutError(TimeoutError):
    """The time limit of a call was reached before its texts were complete."""


class GenerationCancelledError(RuntimeError):
    """A call's `cancel` event was set before its texts were complete."""


class ForkedProcessError(RuntimeError):
    """A generator is used in a process that was forked from the one that made it."""

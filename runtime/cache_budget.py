"""The memory of KV caches, computed before it is taken."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from graphs.contract import CACHE_BYTES
from runtime.cache import cache_bytes
from runtime.decoder import Decoder
from runtime.errors import CacheMemoryError
from runtime.numbers import whole_number
from runtime.sizes import format_bytes
from runtime.system.available_memory import available_memory_bytes

# A cache below this is taken without a look at the machine's memory, which costs a third of a
# millisecond.
SMALL_BYTES = 64 * 2**20


@dataclass(frozen=True)
class CacheDemand:
    """What a cache would take, and what there is for it.

    Attributes:
        cache_bytes: of the cache.
        workspace_bytes: what a step needs beside it.
        available_bytes: of the memory that it would be in; `None` where nobody knows.
        place: whose memory that is.
    """

    cache_bytes: int
    workspace_bytes: int
    available_bytes: int | None
    place: str


@runtime_checkable
class DeviceCacheDecoder(Protocol):
    """A decoder whose caches are in a memory of their own, and take all of theirs at once."""

    def cache_demand(self, batch: int, capacity: int) -> CacheDemand:
        """What a cache of `batch` rows with room for `capacity` tokens each would take."""


@runtime_checkable
class KeepingDecoder(Protocol):
    """A decoder that keeps the memory of a cache for the next one."""

    @property
    def idle_bytes(self) -> int:
        """Bytes that are kept and in no cache."""


class CacheBudget:
    """What the caches of one generator may take together, over all calls in flight.

    A cache counts from its allocation until it is freed. Limit or not, a cache is also refused where
    the machine's free memory does not hold it beside what the caches in flight have not filled yet:
    the system gives out memory that it does not have, and kills a process that writes to it.

    Args:
        limit: bytes, or `None`.

    Raises:
        ValueError: if the limit is no whole number of at least 1.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None:
            limit = whole_number("max_cache_bytes", limit, none="no limit")
        self._limit = limit
        self._lock = threading.Lock()
        self._caches: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    @property
    def bytes_in_use(self) -> int:
        """Bytes of the caches that there are now."""
        with self._lock:
            return sum(self._caches.values())

    def new_cache(self, decoder: Decoder, batch: int, capacity: int) -> Any:
        """A cache of the decoder's, if it fits.

        Raises:
            CacheMemoryError: if it does not; nothing has been allocated then.
        """
        dtype = getattr(decoder, "cache_dtype", "float32")
        token_bytes = decoder.config.cache_bytes(1, 1, CACHE_BYTES[dtype])
        with self._lock:
            if isinstance(decoder, DeviceCacheDecoder):
                demand = decoder.cache_demand(batch, capacity)
                needed = demand.cache_bytes
                problem = self._over_limit(needed) or _over_demand(demand)
            else:
                needed = cache_bytes(decoder.config, batch, capacity, dtype)
                idle = decoder.idle_bytes if isinstance(decoder, KeepingDecoder) else 0
                problem = self._over_limit(needed) or self._over_memory(needed, idle)
            cache = None
            if problem is None:
                try:
                    cache = decoder.new_cache(batch, capacity)
                except MemoryError as error:  # something has taken the memory that there was
                    problem = _free_bytes(needed), f"the system gave no more ({error})"
            if cache is None:
                assert problem is not None
                allowed, reason = problem
                raise CacheMemoryError(
                    f"the KV cache needs {format_bytes(needed)}, for {batch} "
                    f"row{'' if batch == 1 else 's'} of {capacity} tokens at "
                    f"{token_bytes:,} bytes a token, and may have "
                    f"{format_bytes(allowed)}: {reason}. Shorten max_length, give fewer prompts at a "
                    "time or a search fewer candidates, or wait until other calls have ended",
                    needed,
                    allowed,
                )
            self._caches[cache] = needed
        return cache

    def _over_limit(self, needed: int) -> tuple[int, str] | None:
        """What is left of the limit, and why, where that is not enough."""
        used = sum(self._caches.values())
        if self._limit is None or used + needed <= self._limit:
            return None
        reason = f"max_cache_bytes is {format_bytes(self._limit)}"
        return self._limit - used, f"{reason} and calls in flight use {format_bytes(used)}"

    def _over_memory(self, needed: int, idle: int) -> tuple[int, str] | None:
        """What is left of the machine's memory, and why, where that is not enough.

        Args:
            needed: bytes of the cache.
            idle: bytes that this process has and may take for it.
        """
        if needed < SMALL_BYTES:
            return None
        available = available_memory_bytes()
        promised = sum(_unfilled(cache, size) for cache, size in self._caches.items())
        if available is None:
            return None
        available += idle
        if needed + promised <= available:
            return None
        reason = f"{format_bytes(available)} of memory are available"
        return max(0, available - promised), (
            f"{reason} and calls in flight may yet fill {format_bytes(promised)}"
        )


def _free_bytes(needed: int) -> int:
    """What there may have been for a cache that the system refused: less than it needs."""
    available = available_memory_bytes()
    return 0 if available is None or available >= needed else available


def _over_demand(demand: CacheDemand) -> tuple[int, str] | None:
    """What is left of a device's memory for caches, and why, where that is not enough."""
    available = demand.available_bytes
    if available is None or demand.cache_bytes + demand.workspace_bytes <= available:
        return None
    return max(0, available - demand.workspace_bytes), (
        f"{format_bytes(available)} of the memory of {demand.place} are available, of which a run "
        f"needs up to {format_bytes(demand.workspace_bytes)}"
    )


def _unfilled(cache: Any, size: int) -> int:
    """Bytes that a cache has not written to yet, by the tokens it holds."""
    return int(size * (1 - float(np.mean(cache.lengths)) / cache.capacity))

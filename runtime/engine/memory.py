"""The memory of KV caches, computed before it is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from graphs.contract import CACHE_BYTES
from runtime.cache import SPARE_SLOTS
from runtime.decoder import Decoder
from runtime.engine.sequence import Sequence
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

    def slot_capacity(self, tokens: int) -> int:
        """See `runtime.decoder.Decoder`."""

    def cache_demand(self, batch: int, capacity: int) -> CacheDemand:
        """What a cache of `batch` rows with room for `capacity` tokens each would take."""


class CacheMemory:
    """What the rows of all sequences in flight may take together.

    A sequence is promised room for all of its tokens in all of its rows from its first step until its
    end. Limit or not, it is also refused where the machine's free memory does not hold that beside
    what others have been promised and not filled yet: the system gives out memory that it does not
    have, and kills a process that writes to it.

    Args:
        decoder: the model.
        limit: bytes, or `None`.

    Raises:
        ValueError: if the limit is no whole number of at least 1.
    """

    def __init__(self, decoder: Decoder, limit: int | None = None) -> None:
        if limit is not None:
            limit = whole_number("max_cache_bytes", limit, none="no limit")
        self._decoder = decoder
        self._limit = limit
        itemsize = CACHE_BYTES[getattr(decoder, "cache_dtype", "float32")]
        self.token_bytes = decoder.config.cache_bytes(1, 1, itemsize)
        self._promised: dict[Sequence, int] = {}

    @property
    def bytes_in_use(self) -> int:
        """Bytes that are promised now."""
        return sum(self._promised.values())

    def refusal(self, sequence: Sequence, rows: int, idle_bytes: int = 0) -> CacheMemoryError | None:
        """Why a sequence cannot have its rows now; `None` if it can.

        `idle_bytes` of memory are this process's, and free for it.
        """
        needed = self._size(sequence, rows)
        problem = self._over_limit(needed) or self._over_memory(needed, idle_bytes)
        return None if problem is None else self._error(needed, rows, sequence.request.room, *problem)

    def never_fits(self, sequence: Sequence, rows: int) -> bool:
        """Whether the limit is too low for it, whoever else ends."""
        return self._limit is not None and self._size(sequence, rows) > self._limit

    def promise(self, sequence: Sequence, rows: int) -> None:
        """Counts a sequence's rows until `give_back`."""
        self._promised[sequence] = self._size(sequence, rows)

    def give_back(self, sequence: Sequence) -> None:
        """Counts a sequence no more."""
        self._promised.pop(sequence, None)

    def new_cache(self, rows: int, capacity: int) -> Any:
        """A cache of the decoder's.

        Raises:
            CacheMemoryError: if there is no room for it; nothing has been allocated then.
        """
        decoder = self._decoder
        needed = rows * (capacity + SPARE_SLOTS) * self.token_bytes
        problem = None
        if isinstance(decoder, DeviceCacheDecoder):
            demand = decoder.cache_demand(rows, capacity)
            needed, problem = demand.cache_bytes, _over_demand(demand)
        if problem is None:
            try:
                return decoder.new_cache(rows, capacity)
            except MemoryError as error:  # something has taken the memory that there was
                problem = _free_bytes(needed), f"the system gave no more ({error})"
        raise self._error(needed, rows, capacity, *problem)

    def _size(self, sequence: Sequence, rows: int) -> int:
        decoder, tokens = self._decoder, sequence.request.room
        if isinstance(decoder, DeviceCacheDecoder):
            return decoder.cache_demand(rows, decoder.slot_capacity(tokens)).cache_bytes
        return rows * (tokens + SPARE_SLOTS) * self.token_bytes

    def _error(
        self, needed: int, rows: int, tokens: int, allowed: int, reason: str
    ) -> CacheMemoryError:
        return CacheMemoryError(
            f"the KV cache needs {format_bytes(needed)}, for {rows} row{'' if rows == 1 else 's'} of "
            f"{tokens} tokens at {self.token_bytes:,} bytes a token, and may have "
            f"{format_bytes(allowed)}: {reason}. Shorten max_length, give fewer prompts at a time or a "
            "search fewer candidates, or wait until other calls have ended",
            needed,
            allowed,
        )

    def _over_limit(self, needed: int) -> tuple[int, str] | None:
        """What is left of the limit, and why, where that is not enough."""
        used = self.bytes_in_use
        if self._limit is None or used + needed <= self._limit:
            return None
        reason = f"max_cache_bytes is {format_bytes(self._limit)}"
        return self._limit - used, f"{reason} and calls in flight use {format_bytes(used)}"

    def _over_memory(self, needed: int, idle_bytes: int) -> tuple[int, str] | None:
        """What is left of the machine's memory, and why, where that is not enough."""
        if needed < SMALL_BYTES or isinstance(self._decoder, DeviceCacheDecoder):
            return None
        available = available_memory_bytes()
        if available is None:
            return None
        available += idle_bytes
        promised = sum(self._unfilled(sequence, size) for sequence, size in self._promised.items())
        if needed + promised <= available:
            return None
        reason = f"{format_bytes(available)} of memory are available"
        return max(0, available - promised), (
            f"{reason} and calls in flight may yet fill {format_bytes(promised)}"
        )

    def _unfilled(self, sequence: Sequence, size: int) -> int:
        """Bytes that a sequence has not written to yet."""
        filled = len(sequence.request.prompt) + len(sequence.token_ids) if sequence.feed else 0
        return size - len(sequence.rows) * filled * self.token_bytes


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

"""Caches' memory is given out again, zeroed, once nothing refers to it."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from runtime import CacheMemoryError, Generator, cache_budget
from runtime.bundle import Bundle
from runtime.session import SessionDecoder
from runtime.system.kept_memory import KeptMemory


def address(array: np.ndarray[Any, Any]) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def test_memory_is_used_again_and_is_zero() -> None:
    memory = KeptMemory()
    first = memory.zeros((3, 5), "float32")
    assert (first.shape, first.dtype, first.any()) == ((3, 5), np.float32, False)
    place = address(first)
    first.fill(np.nan)
    del first
    assert memory.idle_bytes == 60
    second = memory.zeros((7,), "float64")
    assert address(second) == place
    assert memory.idle_bytes == 0
    assert not second.any()


def test_memory_in_use_is_not_given_out() -> None:
    memory = KeptMemory()
    view = memory.zeros((4, 4), "float32")[1:, 2]  # what is left of an array is enough
    view.fill(7)
    other = memory.zeros((4, 4), "float32")
    assert not np.shares_memory(view, other)
    assert (view == 7).all()


def test_the_last_memory_is_kept() -> None:
    memory = KeptMemory()
    first, second = memory.zeros((100,), "uint8"), memory.zeros((50,), "uint8")
    del first
    assert memory.idle_bytes == 0
    del second
    assert memory.idle_bytes == 50
    assert memory.zeros((60,), "uint8").nbytes == 60
    assert memory.idle_bytes == 60


def test_large_memory_is_not_kept() -> None:
    memory = KeptMemory(most_bytes=100)
    assert memory.zeros((101,), "uint8").shape == (101,)
    assert memory.idle_bytes == 0


def test_two_threads_never_get_the_same_memory() -> None:
    """Both find it idle, unless one waits until the other has taken it."""
    together = threading.Barrier(2)

    class Met(KeptMemory):
        def _is_idle(self) -> bool:
            idle = super()._is_idle()
            with contextlib.suppress(threading.BrokenBarrierError):  # the other one waits for the lock
                together.wait(0.5)
            return idle

    memory = Met()
    assert memory.zeros((100,), "uint8").nbytes == 100
    together.reset()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: memory.zeros((100,), "uint8"), range(2))
    assert not np.shares_memory(first, second)


def test_a_cache_takes_the_memory_of_the_one_before(cpu_decoder: SessionDecoder) -> None:
    cache = cpu_decoder.new_cache(2, 12)
    prompts, lengths = np.array([[2, 5, 6], [7, 8, 0]]), np.array([3, 2], np.int32)
    logits = cpu_decoder.append(cache, prompts, lengths).logits.copy()
    places, size = [address(keys) for keys, _ in cache.layers], cache.nbytes
    del cache
    assert cpu_decoder.idle_bytes >= size
    cache = cpu_decoder.new_cache(2, 12)
    assert [address(keys) for keys, _ in cache.layers] == places
    assert not any(buffer.any() for pair in cache.layers for buffer in pair)
    assert (cpu_decoder.append(cache, prompts, lengths).logits == logits).all()


def test_kept_memory_counts_as_available(
    cpu_decoder: SessionDecoder, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator(cpu_decoder, bundle.tokenizer, "greedy")
    text = generator.generate("ab", max_length=20)
    kept = cpu_decoder.idle_bytes
    monkeypatch.setattr(cache_budget, "SMALL_BYTES", 0)
    monkeypatch.setattr(cache_budget, "available_memory_bytes", lambda: 0)
    assert generator.generate("ab", max_length=20) == text
    with pytest.raises(CacheMemoryError, match="of memory are available"):
        generator.generate(["ab"] * (kept // 1000), max_length=20)

"""Rows of a KV cache that nobody has: what memory they keep, and what goes back to the system."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphs.contract import ModelConfig
from runtime import Generator, cache
from runtime.bundle import Bundle
from runtime.cache import KVCache

CONFIG = ModelConfig(
    vocabulary_size=9,
    num_layers=2,
    num_heads=4,
    hidden_dim=256,
    intermediate_dim=8,
    max_sequence_length=1024,
)
TOKEN_BYTES = 2 * 2 * 256 * 4
MB = 2**20


def resident_bytes() -> int:
    """Memory that the process has."""
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * mmap.PAGESIZE


def filled(rows: int, tokens: int) -> KVCache:
    """A cache whose rows have so many tokens."""
    made = KVCache(CONFIG, rows, 1023, "float32")
    for keys, values in made.layers:
        keys[:, :, :tokens], values[:, :, :tokens] = 1, 2
    made.lengths[:] = tokens
    return made


def holds(made: KVCache, row: int) -> list[bool]:
    """Of each layer whether the row holds anything."""
    return [bool(keys[row].any() or values[row].any()) for keys, values in made.layers]


def test_a_released_row_keeps_its_memory_for_the_next() -> None:
    made = filled(3, 100)
    assert made.idle_bytes == 0
    made.release(1)
    assert made.lengths.tolist() == [100, 0, 100]
    assert made.idle_bytes == 100 * TOKEN_BYTES
    assert holds(made, 1) == [True, True]
    made.lengths[1] = 30  # somebody has it
    assert made.idle_bytes == 0
    made.release(1)
    assert made.idle_bytes == 100 * TOKEN_BYTES  # what was written once is still there
    made.release(0)
    made.lengths[1] = 150
    made.release(1)
    assert made.idle_bytes == 250 * TOKEN_BYTES


def test_a_clean_row_is_zero_and_has_no_memory() -> None:
    made = filled(3, 100)
    made.release(1, clean=True)
    assert made.idle_bytes == 0
    assert [holds(made, row) for row in range(3)] == [[True] * 2, [False] * 2, [True] * 2]
    for keys, values in made.layers:
        for part, number in ((keys, 1), (values, 2)):
            assert (part[[0, 2], :, :100] == number).all()
            assert not part[:, :, 100:].any()
    assert made.lengths.tolist() == [100, 0, 100]


def test_so_much_idle_memory_is_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_IDLE_BYTES", 250 * TOKEN_BYTES)
    made = filled(5, 100)
    for row, idle in ((0, 100), (1, 200), (2, 200), (3, 200)):
        made.release(row)
        assert made.idle_bytes == idle * TOKEN_BYTES
    assert [holds(made, row)[0] for row in range(5)] == [True, True, False, False, True]
    made.lengths[0] = 10  # taken again: there is room for another one's
    made.release(4)
    assert made.idle_bytes == 200 * TOKEN_BYTES
    assert holds(made, 4) == [True, True]


def test_the_most_is_a_quarter_of_a_gigabyte() -> None:
    assert cache.MOST_IDLE_BYTES == 256 * MB


@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted under Linux")
@pytest.mark.parametrize("how", ["too much", "clean"])
def test_the_pages_of_released_rows_go_back(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 rows of 4 MB, of which the process keeps those of two, or none."""
    kept = 0 if how == "clean" else 2
    row_bytes = 1000 * TOKEN_BYTES
    monkeypatch.setattr(cache, "MOST_IDLE_BYTES", 2 * row_bytes + 1)
    empty = resident_bytes()
    made = filled(8, 1000)
    full = resident_bytes()
    assert full - empty > 7 * row_bytes
    for row in range(8):
        made.release(row, clean=how == "clean")
    assert made.idle_bytes == kept * row_bytes
    assert (8 - kept - 1) * row_bytes < full - resident_bytes() < (8 - kept + 1) * row_bytes
    assert [any(holds(made, row)) for row in range(8)] == [True] * kept + [False] * (8 - kept)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted under Linux")
def test_rows_take_memory_as_they_fill() -> None:
    """A cache for many rows and tokens costs nothing before they come."""
    empty = resident_bytes()
    made = KVCache(CONFIG, 64, 1023, "float32")
    assert made.nbytes == 64 * 1024 * TOKEN_BYTES == 256 * MB
    for keys, values in made.layers:
        keys[:2, :, :10], values[:2, :, :10] = 1, 2
    assert resident_bytes() - empty < 4 * MB


def test_calls_one_after_another_use_the_same_memory(cpu_decoder: Any, bundle: Bundle) -> None:
    generator = Generator(cpu_decoder, bundle.tokenizer, "greedy")
    if not cpu_decoder.keeps_slots:
        pytest.skip("the address space is limited: nothing is kept")
    options: dict[str, Any] = {"max_length": 20, "stop_token_ids": None}
    alone = [generator.generate(prompt, **options) for prompt in ("ab", "The quick")]
    (slots,) = generator._engine._slots.values()
    one, idle = slots.cache, slots.idle_bytes
    assert idle == 19 * generator._engine.memory.token_bytes
    for _ in range(3):
        assert [generator.generate(prompt, **options) for prompt in ("ab", "The quick")] == alone
    assert (slots.cache, slots.idle_bytes) == (one, idle)
    assert generator.generate(["ab", "The quick"], **options) == alone
    assert slots.idle_bytes == 2 * idle
    assert np.array_equal(one.lengths, np.zeros(len(one.lengths)))

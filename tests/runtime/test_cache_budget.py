"""Cache memory is computed before it is taken, counted while in use, and freed at once."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from runtime import CacheMemoryError, Generator, cache_budget, cli
from runtime.available_memory import available_memory_bytes
from runtime.bundle import Bundle
from runtime.cache_budget import CacheBudget
from runtime.samplers import BeamSampler
from tests.runtime.fake_decoder import SequenceDecoder
from tests.runtime.toy import HIDDEN

# Keys and values of two layers, four bytes a number, and one spare slot a row.
TOKEN_BYTES = 2 * 2 * HIDDEN * 4


def cache_size(rows: int, capacity: int) -> int:
    return rows * (capacity + 1) * TOKEN_BYTES


@pytest.fixture
def make(bundle: Bundle, decoder: Any) -> Any:
    def make(limit: int | None) -> Generator:
        return Generator(decoder, bundle.tokenizer, "greedy", max_cache_bytes=limit)

    return make


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "2GB"])
def test_a_limit_is_a_whole_number(limit: Any) -> None:
    with pytest.raises(ValueError, match=r"max_cache_bytes must be a whole number of at least 1"):
        CacheBudget(limit)


def test_what_fits_exactly_is_taken(make: Any) -> None:
    text = make(None).generate(["ab", "c"], max_length=20, stop_token_ids=None)
    generator = make(cache_size(2, 20))
    assert generator.generate(["ab", "c"], max_length=20, stop_token_ids=None) == text


def test_a_byte_less_is_refused_with_the_figures(make: Any, decoder: Any) -> None:
    generator = make(cache_size(2, 20) - 1)
    with pytest.raises(CacheMemoryError) as raised:
        generator.generate(["ab", "c"], max_length=20)
    assert str(raised.value) == (
        "the KV cache needs 21.5 KB, for 2 rows of 20 tokens at 512 bytes a token, and may have "
        "21.5 KB: max_cache_bytes is 21.5 KB and calls in flight use 0 bytes. Shorten max_length, "
        "give fewer prompts at a time or a search fewer candidates, or wait until other calls have "
        "ended"
    )
    assert (raised.value.needed, raised.value.allowed) == (cache_size(2, 20), cache_size(2, 20) - 1)
    assert generator.cache_bytes_in_use == 0
    assert generator.generate("ab", max_length=20).startswith("ab")  # one row does fit


def test_the_error_can_be_passed_between_processes() -> None:
    error = pickle.loads(pickle.dumps(CacheMemoryError("text", 5, 3)))
    assert (str(error), error.needed, error.allowed) == ("text", 5, 3)


def test_nothing_is_allocated_for_what_is_refused(
    make: Any, decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = make(1000)
    monkeypatch.setattr(type(decoder), "new_cache", lambda *_: pytest.fail("allocated"))
    for sampler in ("greedy", "beam", "contrastive"):
        generator.compile(sampler)
        with pytest.raises(CacheMemoryError):
            generator.generate("ab", max_length=20)


def test_a_search_is_refused_before_it_reads_the_prompt() -> None:
    decoder = SequenceDecoder(9)
    generator = Generator(decoder, None, BeamSampler(4), max_cache_bytes=2 * 4 * 21 * 6 * 4)
    prompt = {"token_ids": [[1] * 10 + [0] * 10], "padding_mask": [[1] * 10 + [0] * 10]}
    with pytest.raises(CacheMemoryError, match=r"for 1 row of 10 tokens"):
        generator.generate(prompt, stop_token_ids=None)
    assert decoder.appended == []


# === In flight ===


def test_calls_in_flight_count_together(make: Any) -> None:
    generator = make(cache_size(1, 20) + cache_size(1, 10))
    first = generator.stream("ab", max_length=20, stop_token_ids=None)
    assert generator.cache_bytes_in_use == 0  # not begun
    next(first), next(first)
    while generator.cache_bytes_in_use == 0:
        next(first)
    assert generator.cache_bytes_in_use == cache_size(1, 20)
    with pytest.raises(CacheMemoryError, match=r"may have 5\.63 KB: .* calls in flight use 10\.8 KB"):
        generator.generate("ab", max_length=11)
    generator.generate("ab", max_length=10)
    assert generator.cache_bytes_in_use == cache_size(1, 20)
    rest = list(first)
    assert rest
    assert generator.cache_bytes_in_use == 0
    generator.generate("ab", max_length=20)


def begun(generator: Generator) -> Any:
    stream = generator.stream("ab", max_length=40, stop_token_ids=None)
    while not generator.cache_bytes_in_use:
        next(stream)
    return stream


def test_closing_a_stream_frees_its_cache(make: Any) -> None:
    generator = make(None)
    stream = begun(generator)
    stream.close()
    assert generator.cache_bytes_in_use == 0
    assert list(stream) == []


def test_deleting_a_stream_frees_its_cache(make: Any) -> None:
    generator = make(None)
    stream = begun(generator)
    del stream
    assert generator.cache_bytes_in_use == 0


@pytest.mark.parametrize("sampler", ["greedy", "beam", "contrastive", "random"])
def test_an_error_in_the_loop_frees_the_cache(make: Any, sampler: str) -> None:
    generator = make(None)
    generator.compile(sampler)

    def consume() -> None:
        for number, _ in enumerate(generator.stream("ab", max_length=60, stop_token_ids=None)):
            if number == 4:
                raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        consume()
    assert generator.cache_bytes_in_use == 0


def test_a_stream_that_is_never_begun_holds_no_cache(make: Any) -> None:
    generator = make(None)
    streams = [generator.stream("ab", max_length=40) for _ in range(3)]
    assert len(streams) == 3
    assert generator.cache_bytes_in_use == 0


# === The machine's memory ===


def test_a_cache_beyond_the_free_memory_is_refused(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_budget, "SMALL_BYTES", 1000)
    monkeypatch.setattr(cache_budget, "available_memory_bytes", lambda: cache_size(1, 30))
    generator = make(None)
    generator.generate("ab", max_length=30)
    with pytest.raises(
        CacheMemoryError,
        match=r"15\.9 KB of memory are available and calls in flight may yet fill 0 bytes",
    ):
        generator.generate("ab", max_length=31)


def test_what_calls_in_flight_have_not_filled_yet_counts(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = make(None)
    stream = begun(generator)  # holds three tokens of prompt of 40
    monkeypatch.setattr(cache_budget, "SMALL_BYTES", 1000)
    monkeypatch.setattr(cache_budget, "available_memory_bytes", lambda: cache_size(1, 40))
    unfilled = int(cache_size(1, 40) * (1 - 3 / 40))
    with pytest.raises(CacheMemoryError) as raised:
        generator.generate("ab", max_length=5)
    assert raised.value.allowed == cache_size(1, 40) - unfilled
    stream.close()
    generator.generate("ab", max_length=5)


def test_where_the_system_does_not_tell_nothing_is_refused(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_budget, "SMALL_BYTES", 1)
    monkeypatch.setattr(cache_budget, "available_memory_bytes", lambda: None)
    assert make(None).generate("ab", max_length=30).startswith("ab")


@pytest.mark.skipif(available_memory_bytes() is None, reason="the system does not tell its memory")
def test_an_absurd_request_is_refused(make: Any) -> None:
    generator = make(None)
    with pytest.raises(CacheMemoryError, match=r"for 100000000 rows of 60 tokens"):
        generator._budget.new_cache(generator._decoder, 10**8, 60)


# === The command ===


def test_the_command_takes_a_size(toy_bundle: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(toy_bundle), "ab", "--max-length", "20", "--threads", "1", "--device", "cpu"]
    assert cli.main([*arguments, "--max-cache-bytes", "10KB"]) == 2
    assert "max_cache_bytes is 10 KB" in capsys.readouterr().err
    assert cli.main([*arguments, "--max-cache-bytes", "11KB"]) == 0
    assert cli.main([*arguments, "--max-cache-bytes", "many"]) == 2
    assert "a size is a number and a unit, such as 2GB" in capsys.readouterr().err


def test_the_command_takes_a_timeout(toy_bundle: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(toy_bundle), "ab", "--max-length", "20", "--threads", "1", "--device", "cpu"]
    assert cli.main([*arguments, "--timeout", "1e-9"]) == 2
    captured = capsys.readouterr()
    assert "the call reached its timeout of 1e-09 s after 0 new tokens" in captured.err
    assert cli.main([*arguments, "--timeout", "600"]) == 0
    assert cli.main([*arguments, "--timeout", "-1"]) == 2
    assert "timeout must be a number of seconds above 0" in capsys.readouterr().err

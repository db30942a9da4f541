"""Cache memory is computed before it is taken, counted while in use, and freed at once."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import pytest

from runtime import CacheMemoryError, Generator, cli
from runtime.bundle import Bundle
from runtime.engine import memory
from runtime.engine.engine import Engine
from runtime.engine.memory import CacheMemory
from runtime.engine.request import Request
from runtime.engine.sequence import Sequence
from runtime.samplers import BeamSampler, GreedySampler
from runtime.system.available_memory import available_memory_bytes
from tests.runtime.engine_runs import begin, new_call
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
        CacheMemory(SequenceDecoder(5), limit)


def test_what_fits_exactly_is_taken(make: Any) -> None:
    text = make(None).generate("ab", max_length=20, stop_token_ids=None)
    generator = make(cache_size(1, 20))
    assert generator.generate("ab", max_length=20, stop_token_ids=None) == text


def test_a_byte_less_is_refused_with_the_figures(make: Any) -> None:
    generator = make(cache_size(2, 20) - 1)
    generator.compile(BeamSampler(2))
    with pytest.raises(CacheMemoryError) as raised:
        generator.generate("ab", max_length=20)
    assert str(raised.value) == (
        "the KV cache needs 21.5 KB, for 2 rows of 20 tokens at 512 bytes a token, and may have "
        "21.5 KB: max_cache_bytes is 21.5 KB and calls in flight use 0 bytes. Shorten max_length, "
        "give fewer prompts at a time or a search fewer candidates, or wait until other calls have "
        "ended"
    )
    assert (raised.value.needed, raised.value.allowed) == (cache_size(2, 20), cache_size(2, 20) - 1)
    assert generator.cache_bytes_in_use == 0
    assert generator.generate("ab", max_length=19).startswith("ab")
    generator.compile("greedy")
    with pytest.raises(CacheMemoryError, match=r"needs 21\.5 KB, for 1 row of 41 tokens at 512 bytes"):
        generator.generate(["c", "ab"], max_length=41)


def test_one_sequence_that_can_never_fit_ends_its_call_alone(make: Any) -> None:
    generator = make(cache_size(1, 20))
    alone = generator.generate("ab", max_length=20, stop_token_ids=None)
    stream = generator.stream("ab", max_length=20, stop_token_ids=None)
    pieces = [next(stream), next(stream)]
    with pytest.raises(CacheMemoryError, match=r"may have 0 bytes: .* calls in flight use 10\.8 KB"):
        generator.generate("ab", max_length=21)
    assert "".join([*pieces, *stream]) == alone


def test_the_error_can_be_passed_between_processes() -> None:
    error = pickle.loads(pickle.dumps(CacheMemoryError("text", 5, 3)))
    assert (str(error), error.needed, error.allowed) == ("text", 5, 3)


@pytest.mark.parametrize("refused_by", ["the limit", "the machine"])
def test_nothing_is_allocated_for_what_is_refused(
    make: Any, decoder: Any, monkeypatch: pytest.MonkeyPatch, refused_by: str
) -> None:
    generator = make(1000 if refused_by == "the limit" else None)
    monkeypatch.setattr(memory, "SMALL_BYTES", 1000)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 1000)
    monkeypatch.setattr(type(decoder), "new_cache", lambda *_: pytest.fail("allocated"))
    for sampler in ("greedy", "beam", "contrastive"):
        generator.compile(sampler)
        with pytest.raises(CacheMemoryError):
            generator.generate("ab", max_length=20)
        assert generator.cache_bytes_in_use == 0


@pytest.mark.parametrize("missing", [0, 1])
def test_a_search_is_refused_before_it_reads_the_prompt(missing: int) -> None:
    decoder = SequenceDecoder(9)
    limit = 4 * 21 * decoder.config.cache_bytes(1, 1, 4) - missing
    generator = Generator(decoder, None, BeamSampler(4), max_cache_bytes=limit)
    prompt = {"token_ids": [[1] * 10 + [0] * 10], "padding_mask": [[1] * 10 + [0] * 10]}
    if missing:
        with pytest.raises(CacheMemoryError, match=r"for 4 rows of 20 tokens"):
            generator.generate(prompt, stop_token_ids=None)
        assert decoder.appended == []
    else:
        assert generator.generate(prompt, stop_token_ids=None)["padding_mask"].all()


# === In flight ===


def test_calls_in_flight_count_together(make: Any) -> None:
    generator = make(cache_size(1, 20) + cache_size(1, 10))
    first = generator.stream("ab", max_length=20, stop_token_ids=None)
    assert generator.cache_bytes_in_use == 0  # not begun
    begun_pieces = [next(first), next(first)]
    assert generator.cache_bytes_in_use == cache_size(1, 20)
    generator.generate("ab", max_length=10)  # beside it
    assert generator.cache_bytes_in_use == cache_size(1, 20)
    assert "".join([*begun_pieces, *first]) == generator.generate(
        "ab", max_length=20, stop_token_ids=None
    )
    assert generator.cache_bytes_in_use == 0


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


@pytest.mark.parametrize("missing", [0, 1])
def test_a_cache_beyond_the_free_memory_is_refused(
    make: Any, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    monkeypatch.setattr(memory, "SMALL_BYTES", 1000)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: cache_size(1, 31) - missing)
    generator = make(None)
    if not missing:
        assert generator.generate("ab", max_length=31).startswith("ab")
        return
    with pytest.raises(
        CacheMemoryError,
        match=r"16\.4 KB of memory are available and calls in flight may yet fill 0 bytes",
    ):
        generator.generate("ab", max_length=31)
    generator.generate("ab", max_length=30)


def test_idle_memory_counts_as_available(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, a second call as large as the memory would be refused."""
    generator = make(None)
    if not generator._decoder.keeps_slots:
        pytest.skip("the address space is limited: nothing is kept")
    text = generator.generate("ab", max_length=30, stop_token_ids=None)
    (slots,) = generator._engine._slots.values()
    assert slots.idle_bytes == 29 * TOKEN_BYTES  # the last token is not read
    monkeypatch.setattr(memory, "SMALL_BYTES", 1000)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 2 * TOKEN_BYTES)
    with pytest.raises(CacheMemoryError, match=r"15\.9 KB of memory are available"):
        generator.generate("ab", max_length=31)
    assert generator.generate("ab", max_length=30, stop_token_ids=None) == text


def test_what_sequences_in_flight_have_not_filled_yet_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = SequenceDecoder(9)
    engine, size = Engine(decoder), decoder.config.cache_bytes(1, 1, 4)
    call = begin(engine, new_call(decoder, [Request((1, 2, 3), 40)], BeamSampler(2)))
    engine.step()
    monkeypatch.setattr(memory, "SMALL_BYTES", 1)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 100 * size)
    other = Sequence(Request((1,), 60))
    for _ in range(5):
        engine.step()
        filled = 3 + len(call.sequences[0].token_ids)
        refusal = engine.memory.refusal(other, 1)
        assert refusal is not None
        assert refusal.allowed == (100 - 2 * (41 - filled)) * size
        assert engine.memory.refusal(other, 1, idle_bytes=61 * size) is None


def test_where_the_system_does_not_tell_nothing_is_refused(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SMALL_BYTES", 1)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: None)
    assert make(None).generate("ab", max_length=30).startswith("ab")


@pytest.mark.parametrize("available", [None, 10**12, 1000], ids=["untold", "much", "little"])
def test_memory_that_the_system_refuses_after_all(
    make: Any, decoder: Any, monkeypatch: pytest.MonkeyPatch, available: int | None
) -> None:
    """Under `ulimit -v`, or because another process was faster: no bare `MemoryError`."""

    def new_cache(*_: Any) -> Any:
        raise MemoryError("Unable to allocate 31.5 MiB")

    monkeypatch.setattr(memory, "available_memory_bytes", lambda: available)
    monkeypatch.setattr(type(decoder), "new_cache", new_cache)
    generator = make(None)
    with pytest.raises(CacheMemoryError, match=r"the system gave no more \(Unable to all") as raised:
        generator.generate("ab", max_length=30)
    assert raised.value.needed == cache_size(1, decoder.slot_capacity(30))  # without spare rows
    assert raised.value.allowed == (1000 if available == 1000 else 0)
    assert generator.cache_bytes_in_use == 0
    monkeypatch.undo()
    assert generator.generate("ab", max_length=30).startswith("ab")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_limit_of_the_address_space_counts(repository: Any) -> None:
    """`ulimit -v` with 100 MB more than the process has: 403 MB are refused with the figures."""
    program = """
import resource
from graphs.contract import ModelConfig
from runtime import CacheMemoryError, Generator
from tests.runtime.fake_decoder import SequenceDecoder
decoder = SequenceDecoder(9)
decoder.config = ModelConfig(9, 24, 16, 1024, 4096, 2048)
generator = Generator(decoder, None, "greedy")
def generate(length):
    mask = [1] * 10 + [0] * (length - 10)
    inputs = {"token_ids": [[1] * length], "padding_mask": [mask]}
    generator.generate(inputs, stop_token_ids=None)
generate(20)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, -1))
try:
    generate(2048)
except CacheMemoryError as error:
    print(error.needed, error.allowed)
generate(20)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True
    )
    needed, allowed = map(int, done.stdout.split())
    assert needed == 2049 * 24 * 2 * 1024 * 4
    assert 0 < allowed <= 100_000_000


@pytest.mark.skipif(available_memory_bytes() is None, reason="the system does not tell its memory")
def test_an_absurd_request_is_refused(decoder: Any) -> None:
    refusal = CacheMemory(decoder).refusal(Sequence(Request((1, 2), 60)), rows=10**8)
    assert "3.12 TB, for 100000000 rows of 60 tokens" in str(refusal)


def test_more_rows_than_there_may_be_are_refused() -> None:
    decoder = SequenceDecoder(9)
    engine = Engine(decoder, max_slots=3)
    with pytest.raises(ValueError, match=r"a search of 4 rows for each prompt is more than the 3 rows"):
        engine.check(new_call(decoder, [Request((1, 2), 9)], BeamSampler(4)))
    engine.check(new_call(decoder, [Request((1, 2), 9)] * 9, GreedySampler()))


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

"""Cache memory is computed before it is taken, counted while in use, and freed at once."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from graphs.contract import ModelConfig, Phase
from runtime import CacheMemoryError, Generator, cache_budget, cli
from runtime.bundle import Bundle
from runtime.cache_budget import CacheBudget, DeviceCacheDecoder
from runtime.gpu.memory import HostMemory
from runtime.gpu.session import DeviceDecoder
from runtime.samplers import BeamSampler
from runtime.session_opener import SessionOpener
from runtime.system.available_memory import available_memory_bytes
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


def test_a_cache_beyond_the_free_memory_is_refused(
    make: Any, decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_budget, "SMALL_BYTES", 1000)
    monkeypatch.setattr(
        cache_budget, "available_memory_bytes", lambda: cache_size(1, 30) - decoder.idle_bytes
    )
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


@pytest.mark.parametrize("available", [None, 10**12, 1000], ids=["untold", "much", "little"])
def test_memory_that_the_system_refuses_after_all(
    make: Any, decoder: Any, monkeypatch: pytest.MonkeyPatch, available: int | None
) -> None:
    """Under `ulimit -v`, or because another thread was faster: no bare `MemoryError`."""

    def new_cache(*_: Any) -> Any:
        raise MemoryError("Unable to allocate 31.5 MiB")

    monkeypatch.setattr(cache_budget, "available_memory_bytes", lambda: available)
    monkeypatch.setattr(type(decoder), "new_cache", new_cache)
    generator = make(None)
    with pytest.raises(CacheMemoryError, match=r"the system gave no more \(Unable to all") as raised:
        generator.generate("ab", max_length=30)
    assert raised.value.needed == cache_size(1, 30)
    assert raised.value.allowed == (1000 if available == 1000 else 0)
    assert generator.cache_bytes_in_use == 0
    monkeypatch.undo()
    assert generator.generate("ab", max_length=30).startswith("ab")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_limit_of_the_address_space_counts(toy_bundle: Any, repository: Any) -> None:
    """`ulimit -v` with 100 MB more than the process has: 266 MB are refused with the figures."""
    program = f"""
import resource
from runtime import CacheMemoryError, Generator
generator = Generator.from_bundle({str(toy_bundle)!r}, threads=1)
generator.generate("a")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, -1))
try:
    generator.generate(["a"] * 8000, max_length=64)
except CacheMemoryError as error:
    print(error.needed, error.allowed)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True
    )
    needed, allowed = map(int, done.stdout.split())
    assert needed == cache_size(8000, 64)
    assert 0 < allowed < 100_000_000


@pytest.mark.skipif(available_memory_bytes() is None, reason="the system does not tell its memory")
def test_an_absurd_request_is_refused(make: Any) -> None:
    generator = make(None)
    with pytest.raises(CacheMemoryError, match=r"for 100000000 rows of 60 tokens"):
        generator._budget.new_cache(generator._decoder, 10**8, 60)


# === The memory of a device ===

OPT_6_7B = ModelConfig(
    vocabulary_size=50272,
    num_layers=32,
    num_heads=32,
    hidden_dim=4096,
    intermediate_dim=16384,
    max_sequence_length=2048,
)
WEIGHTS = 2 * OPT_6_7B.num_parameters


class Gpu(HostMemory):
    """A GPU with so many bytes left, which gives none of them."""

    name = "cuda:0"

    def __init__(self, free: int) -> None:
        super().__init__()
        self.free_bytes = free

    def available_bytes(self) -> int:
        return self.free_bytes

    def allocate(self, nbytes: int) -> int:
        pytest.fail("allocated")


def large_decoder(cuda_bundle: Bundle, free: int) -> DeviceDecoder:
    manifest = replace(cuda_bundle.manifest, model=OPT_6_7B)
    return DeviceDecoder(manifest, {}, Gpu(free), cuda_graphs=True)


def test_a_cache_of_opt_6_7b_on_a_gpu_of_80_gb(cuda_bundle: Bundle) -> None:
    """64 rows of 2,048 tokens, computed before anything is taken."""
    decoder = large_decoder(cuda_bundle, 80 * 10**9 - WEIGHTS)
    demand = decoder.cache_demand(64, 2048)
    assert demand.cache_bytes == 64 * 2112 * 32 * 2 * 4096 * 2 == 70_866_960_384
    assert demand.workspace_bytes == 1_058_111_488
    assert isinstance(decoder, DeviceCacheDecoder)
    generator = Generator(decoder, None)
    prompts = {"token_ids": np.ones((64, 2048), int), "padding_mask": np.tri(64, 2048, 5, int)}
    with pytest.raises(CacheMemoryError) as raised:
        generator.generate(prompts, stop_token_ids=None)
    assert str(raised.value) == (
        "the KV cache needs 70.9 GB, for 64 rows of 2048 tokens at 524,288 bytes a token, and may have "
        "65.6 GB: 66.7 GB of the memory of cuda:0 are available, of which a run needs up to 1.06 GB. "
        "Shorten max_length, give fewer prompts at a time or a search fewer candidates, or wait until "
        "other calls have ended"
    )
    assert raised.value.needed == demand.cache_bytes
    assert raised.value.allowed == 80 * 10**9 - WEIGHTS - demand.workspace_bytes
    assert generator.cache_bytes_in_use == 0


@pytest.mark.parametrize(("rows", "capacity", "tokens"), [(1, 20, 20), (3, 100, 300), (64, 2048, 8192)])
def test_what_a_run_needs_beside_the_cache(
    cuda_bundle: Bundle, rows: int, capacity: int, tokens: int
) -> None:
    demand = large_decoder(cuda_bundle, 0).cache_demand(rows, capacity)
    assert demand.workspace_bytes == 2 * tokens * (2 * 16384 + 7 * 4096) + 16 * rows * 50272
    assert (demand.available_bytes, demand.place) == (0, "cuda:0")


@pytest.mark.parametrize("missing", [0, 1])
def test_a_device_is_filled_to_its_last_byte(
    device_decoder: DeviceDecoder, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    demand = device_decoder.cache_demand(2, 20)
    free = demand.cache_bytes + demand.workspace_bytes - missing
    monkeypatch.setattr(device_decoder._memory, "available_bytes", lambda: free)
    budget = CacheBudget()
    if missing:
        with pytest.raises(CacheMemoryError):
            budget.new_cache(device_decoder, 2, 20)
    else:
        assert budget.new_cache(device_decoder, 2, 20).capacity == 20


def test_idle_buffers_count_as_available(
    device_decoder: DeviceDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them, a second call as large as the memory would be refused."""
    budget = CacheBudget()
    cache = budget.new_cache(device_decoder, 2, 20)
    workspace = device_decoder.cache_demand(2, 20).workspace_bytes
    monkeypatch.setattr(device_decoder._memory, "available_bytes", lambda: workspace)
    assert budget.bytes_in_use == cache.nbytes == 2 * 64 * 2 * 2 * HIDDEN * 2
    with pytest.raises(CacheMemoryError):
        budget.new_cache(device_decoder, 2, 20)
    del cache
    assert budget.bytes_in_use == 0
    assert budget.new_cache(device_decoder, 2, 20).nbytes > 0


def test_what_onnx_runtime_keeps_from_former_runs_is_not_asked_for_twice(cuda_bundle: Bundle) -> None:
    """Its arena shows as taken: a call that has worked would be refused the next time."""

    class Free(HostMemory):
        name = "cuda:0"

    opener = SessionOpener(cuda_bundle, 1)
    session = opener.packed_in_memory(cuda_bundle.manifest.graphs[Phase.DECODE])
    sessions = dict.fromkeys(Phase, session)
    decoder = DeviceDecoder(cuda_bundle.manifest, sessions, Free(), cuda_graphs=False)
    before = decoder.cache_demand(2, 20).workspace_bytes
    decoder.append(decoder.new_cache(2, 20), np.ones((2, 12), int), np.array([12, 5]))
    after = decoder.cache_demand(2, 20).workspace_bytes
    assert before - after == 2 * 2 * 12 * (2 * 64 + 7 * HIDDEN) + 16 * 2 * 300
    decoder.append(decoder.new_cache(1, 12), np.ones((1, 3), int), np.array([3]))
    assert decoder.cache_demand(2, 20).workspace_bytes == after
    decoder.append(decoder.new_cache(2, 40), np.ones((2, 30), int), np.array([30, 5]))
    assert decoder.cache_demand(2, 20).workspace_bytes == 0


def test_a_device_that_does_not_tell_refuses_nothing(
    device_decoder: DeviceDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_decoder._memory, "available_bytes", lambda: None)
    assert device_decoder.cache_demand(2, 20).available_bytes is None
    assert CacheBudget().new_cache(device_decoder, 2, 20).capacity == 20


def test_a_limit_counts_what_a_device_really_takes(
    device_decoder: DeviceDecoder, cuda_bundle: Bundle
) -> None:
    size = device_decoder.cache_demand(1, 20).cache_bytes
    generator = Generator(device_decoder, cuda_bundle.tokenizer, "greedy", max_cache_bytes=size)
    text = generator.generate("ab", max_length=20)
    message = r"the KV cache needs 32\.8 KB, for 2 rows of 20 tokens at 256 bytes a token, and may have"
    with pytest.raises(CacheMemoryError, match=message):
        generator.generate(["ab", "c"], max_length=20)
    assert generator.generate("ab", max_length=20) == text


def test_one_cache_at_a_time_is_measured(
    device_decoder: DeviceDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free must not change between the look at it and the allocation."""
    budget, looks = CacheBudget(), []

    def look() -> None:
        looks.append(budget._lock.locked())

    monkeypatch.setattr(device_decoder._memory, "available_bytes", look)
    budget.new_cache(device_decoder, 1, 10)
    assert looks == [True]


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

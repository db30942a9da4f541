"""The memory of devices: what a cache would take there is known before it is taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphs.contract import ModelConfig, Phase
from runtime import CacheMemoryError, Generator
from runtime.bundle import Bundle
from runtime.engine.memory import CacheMemory, DeviceCacheDecoder
from runtime.gpu.memory import HostMemory
from runtime.gpu.session import DeviceDecoder
from runtime.samplers import BeamSampler
from runtime.session_opener import SessionOpener
from tests.runtime.toy import HIDDEN

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
    with pytest.raises(CacheMemoryError) as raised:
        CacheMemory(decoder).new_cache(64, 2048)
    assert str(raised.value) == (
        "the KV cache needs 70.9 GB, for 64 rows of 2048 tokens at 524,288 bytes a token, and may have "
        "65.6 GB: 66.7 GB of the memory of cuda:0 are available, of which a run needs up to 1.06 GB. "
        "Shorten max_length, give fewer prompts at a time or a search fewer candidates, or wait until "
        "other calls have ended"
    )
    assert raised.value.needed == demand.cache_bytes
    assert raised.value.allowed == 80 * 10**9 - WEIGHTS - demand.workspace_bytes


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
    memory = CacheMemory(device_decoder)
    if missing:
        with pytest.raises(CacheMemoryError):
            memory.new_cache(2, 20)
    else:
        assert memory.new_cache(2, 20).capacity == 20


def test_idle_buffers_count_as_available(
    device_decoder: DeviceDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them, a second call as large as the memory would be refused."""
    memory = CacheMemory(device_decoder)
    cache = memory.new_cache(2, 20)
    workspace = device_decoder.cache_demand(2, 20).workspace_bytes
    monkeypatch.setattr(device_decoder._memory, "available_bytes", lambda: workspace)
    assert cache.nbytes == 2 * 64 * 2 * 2 * HIDDEN * 2
    with pytest.raises(CacheMemoryError):
        memory.new_cache(2, 20)
    del cache
    assert memory.new_cache(2, 20).nbytes > 0


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
    assert CacheMemory(device_decoder).new_cache(2, 20).capacity == 20


def test_a_limit_counts_what_a_device_really_takes(
    device_decoder: DeviceDecoder, cuda_bundle: Bundle
) -> None:
    size = device_decoder.cache_demand(1, 20).cache_bytes
    generator = Generator(device_decoder, cuda_bundle.tokenizer, "greedy", max_cache_bytes=size)
    text = generator.generate("ab", max_length=20)
    assert size == 64 * 2 * 2 * HIDDEN * 2  # of 64 tokens, not of 21
    assert generator.generate(["ab"] * 3, max_length=20) == [text] * 3  # one after another
    generator.compile(BeamSampler(2))
    message = r"the KV cache needs 32\.8 KB, for 2 rows of 20 tokens at 256 bytes a token, and may have"
    with pytest.raises(CacheMemoryError, match=message):
        generator.generate("ab", max_length=20)


def test_a_batch_that_does_not_fit_a_device_runs_in_turns(
    device_decoder: DeviceDecoder, cuda_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator(device_decoder, cuda_bundle.tokenizer, "greedy")
    prompts = ["ab", "c", "The quick", "t", "", "the king"]
    wanted = generator.generate(prompts, max_length=30, stop_token_ids=None)
    while device_decoder._pool.free_one():
        pass
    made, new_cache = [], DeviceDecoder.new_cache
    demand = device_decoder.cache_demand(3, device_decoder.slot_capacity(30))
    room = demand.cache_bytes + demand.workspace_bytes
    monkeypatch.setattr(device_decoder._memory, "available_bytes", lambda: room)
    monkeypatch.setattr(
        DeviceDecoder, "new_cache", lambda self, *size: (made.append(size), new_cache(self, *size))[1]
    )
    again = Generator(device_decoder, cuda_bundle.tokenizer, "greedy")
    assert again.generate(prompts, max_length=30, stop_token_ids=None) == wanted
    assert made
    assert max(rows for rows, _ in made) == 3

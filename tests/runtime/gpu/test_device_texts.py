"""Texts over a device's buffers: as the other decoder's, alone, in batches, in threads, in pieces."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from runtime import GenerationCancelledError, Generator, LogitsError
from runtime.bundle import Bundle
from runtime.gpu import session as device_session
from runtime.gpu.memory import HostMemory
from runtime.gpu.session import DeviceDecoder
from runtime.samplers import (
    BeamSampler,
    ContrastiveSampler,
    GreedySampler,
    RandomSampler,
    Sampler,
    TopKSampler,
    TopPSampler,
)
from runtime.session import SessionDecoder
from tests.runtime.gpu.test_device_session import over
from tests.runtime.test_session import append
from tests.runtime.toy import CASES, POSITIONS

TEXTS = ["", "t", "The quick", "the king ate in the inn", "The quick", "Zoë, café: 😀 "]
SAMPLERS: list[Sampler] = [
    GreedySampler(),
    TopKSampler(k=5, seed=3),
    TopPSampler(p=0.5, seed=3),
    TopPSampler(p=0.95, seed=3, temperature=2.0),
    RandomSampler(seed=3, temperature=0.7),
    BeamSampler(num_beams=3),
    ContrastiveSampler(k=4, alpha=0.3),
]


def texts(decoder: Any, bundle: Bundle, sampler: Sampler, prompts: Sequence[str] = TEXTS) -> Any:
    return Generator(decoder, bundle.tokenizer, sampler).generate(list(prompts), max_length=60)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_texts_are_those_of_the_other_decoder(
    bundle: Bundle, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same graphs in float32, on buffers of a device and on NumPy's."""
    wanted = texts(SessionDecoder(bundle, threads=1), bundle, sampler)
    assert texts(over(bundle, HostMemory()), bundle, sampler) == wanted
    monkeypatch.setattr(device_session, "RUN_TOKENS", 5)
    assert texts(over(bundle, HostMemory()), bundle, sampler) == wanted


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_texts_alone_are_those_of_a_batch(
    device_decoder: DeviceDecoder, cuda_bundle: Bundle, sampler: Sampler
) -> None:
    together = texts(device_decoder, cuda_bundle, sampler)
    alone = [texts(device_decoder, cuda_bundle, sampler, [prompt])[0] for prompt in TEXTS]
    assert together[:4] == alone[:4]
    assert together[5] == alone[5]
    generator = Generator(device_decoder, cuda_bundle.tokenizer, sampler)
    pieces = list(generator.stream(TEXTS[3], max_length=60))
    assert "".join(pieces) == together[3]
    assert len(pieces) > 5


def test_the_best_token_in_float16_is_that_of_keras_where_no_other_is_near(
    device_decoder: DeviceDecoder, bundle: Bundle
) -> None:
    exact = SessionDecoder(bundle, threads=1)
    near, steps = 0, 0
    for case in CASES[:5]:
        caches = device_decoder.new_cache(1, POSITIONS), exact.new_cache(1, POSITIONS)
        fed = case["prompt"]
        for token in case["continuation"]:
            output = append(device_decoder, caches[0], [fed], hidden_states=False)
            second, first = np.sort(append(exact, caches[1], [fed])[0])[-2:]
            clear = first - second >= 0.1
            assert output.best.token_ids[0, 0] == token or not clear
            steps, near = steps + 1, near + (not clear)
            fed = [token]
    assert (near, steps) == (26, 120)


def test_nan_in_the_cache_ends_one_call_only(
    device_decoder: DeviceDecoder, cuda_bundle: Bundle
) -> None:
    generator = Generator(device_decoder, cuda_bundle.tokenizer, "greedy")
    text = generator.generate("The quick", max_length=40, stop_token_ids=None)
    stream = generator.stream("The quick", max_length=40, stop_token_ids=None)
    next(stream), next(stream)
    (slots,) = generator._engine._slots.values()
    cache = slots.cache
    poison = np.full(cache.nbytes, 0xFF, np.uint8)
    device_decoder._memory.write(cache.buffers.pointer, poison)
    del slots, cache
    with pytest.raises(LogitsError, match=r"300 of 300 logits that are not finite numbers"):
        list(stream)
    assert generator.generate("The quick", max_length=40, stop_token_ids=None) == text


@pytest.mark.parametrize("calls", [16])
def test_many_threads_get_what_each_gets_alone(
    device_decoder: DeviceDecoder, cuda_bundle: Bundle, calls: int
) -> None:
    samplers = [SAMPLERS[i % len(SAMPLERS)] for i in range(calls)]
    prompts = [TEXTS[i % 3 : i % 3 + 1 + i % 4] for i in range(calls)]
    wanted = [texts(device_decoder, cuda_bundle, s, p) for s, p in zip(samplers, prompts, strict=True)]
    barrier = threading.Barrier(calls)

    def call(i: int) -> Any:
        barrier.wait()
        return texts(device_decoder, cuda_bundle, samplers[i], prompts[i])

    with ThreadPoolExecutor(calls) as pool:
        assert list(pool.map(call, range(calls))) == wanted


@pytest.mark.parametrize("runs", [1, 4])
def test_a_call_ends_in_the_middle_of_a_prompt(
    device_decoder: DeviceDecoder, cuda_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, runs: int
) -> None:
    monkeypatch.setattr(device_session, "RUN_TOKENS", 3)
    cancel, done, run = threading.Event(), [], device_decoder._runs.run

    def noted(*arguments: Any) -> None:
        run(*arguments)
        done.append(len(done))
        if len(done) == runs:
            cancel.set()

    monkeypatch.setattr(device_decoder._runs, "run", noted)
    generator = Generator(device_decoder, cuda_bundle.tokenizer, "greedy")
    with pytest.raises(GenerationCancelledError):
        generator.generate(["the king ate in the inn"] * 4, max_length=40, cancel=cancel)
    assert len(done) == runs
    monkeypatch.undo()
    assert generator.generate("ab", max_length=20).startswith("ab")

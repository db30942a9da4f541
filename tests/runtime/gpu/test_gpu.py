"""On a real GPU: the numbers of the CPU, recorded steps, threads, and memory that comes back."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphs.contract import Phase
from runtime import CacheMemoryError, Generator, RuntimeMissingError
from runtime.bundle import Bundle
from runtime.decoder import StepOutput
from runtime.errors import DeviceMemoryError, NodePlacementError
from runtime.gpu import session as device_session
from runtime.gpu.buffers import CacheShape
from runtime.gpu.node_placement import count_operators
from runtime.gpu.session import DeviceDecoder
from runtime.open_decoder import open_decoder
from runtime.samplers import RandomSampler, Sampler, TopKSampler, TopPSampler
from tests.runtime.gpu.test_device_texts import SAMPLERS, TEXTS, texts
from tests.runtime.test_session import RAGGED, append, logits_alone, random_rows
from tests.runtime.toy import CASES, HIDDEN_STATES, POSITIONS, ragged_pieces

pytestmark = pytest.mark.gpu
SLACK = 4 << 20  # of the GPU's memory, in what other processes and the driver take and give


@pytest.fixture(scope="module")
def gpu_decoder(cuda_bundle: Bundle) -> DeviceDecoder:
    """The toy model on the GPU, which records its steps."""
    decoder = open_decoder(cuda_bundle, "cuda")
    assert isinstance(decoder, DeviceDecoder)
    return decoder


@pytest.fixture
def cold_decoder(cuda_bundle: Bundle) -> Iterator[DeviceDecoder]:
    """One that has run nothing yet."""
    decoder = open_decoder(cuda_bundle, "cuda")
    assert isinstance(decoder, DeviceDecoder)
    yield decoder
    del decoder
    gc.collect()


@pytest.fixture(scope="module")
def plain_decoder(cuda_bundle: Bundle) -> Any:
    """The same without recorded steps."""
    return open_decoder(cuda_bundle, "cuda", cuda_graphs=False)


def assert_near(found: Any, wanted: Any, share: float = 0.01) -> None:
    """Within a share of the standard deviation; single numbers may be further off."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    assert np.sqrt(((found - wanted) ** 2).mean()) <= share * wanted.std()
    assert np.abs(found - wanted).max() <= 4 * share * wanted.std()


# === Numbers ===


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['prompt'])} tokens")
def test_logits_are_those_of_keras_and_of_the_cpu(
    gpu_decoder: DeviceDecoder, device_decoder: DeviceDecoder, case: Any
) -> None:
    prompt, continuation = case["prompt"], case["continuation"]
    caches = [one.new_cache(1, POSITIONS) for one in (gpu_decoder, device_decoder)]
    found = append(gpu_decoder, caches[0], [prompt])[0]
    assert_near(found, append(device_decoder, caches[1], [prompt])[0])
    assert_near(found, case["logits_after_prompt"])
    for token in continuation[:-1]:
        found = append(gpu_decoder, caches[0], [[token]])[0]
        assert_near(found, append(device_decoder, caches[1], [[token]])[0])


def test_a_ragged_batch_gives_the_logits_of_keras(gpu_decoder: DeviceDecoder) -> None:
    cases = CASES[:5]
    cache = gpu_decoder.new_cache(len(cases), POSITIONS)
    logits = append(gpu_decoder, cache, [case["prompt"] for case in cases])
    assert_near(logits, [case["logits_after_prompt"] for case in cases])
    for tokens in zip(*(case["continuation"][:-1] for case in cases), strict=True):
        logits = append(gpu_decoder, cache, [[token] for token in tokens])
    assert_near(logits, [case["logits_at_end"] for case in cases])


@pytest.mark.parametrize("run_tokens", [3, 8192])
@pytest.mark.parametrize(("prompts", "pieces", "capacity"), RAGGED)
def test_ragged_pieces_equal_whole_rows(
    gpu_decoder: DeviceDecoder,
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[int],
    pieces: list[list[int]],
    capacity: int,
    run_tokens: int,
) -> None:
    monkeypatch.setattr(device_session, "RUN_TOKENS", run_tokens)
    rows = random_rows([n + sum(piece[i] for piece in pieces) for i, n in enumerate(prompts)])
    cache = gpu_decoder.new_cache(len(rows), capacity)
    for new, done in ragged_pieces(rows, [prompts, *pieces]):
        logits = append(gpu_decoder, cache, new)
        assert cache.lengths.tolist() == done
        for i, row in enumerate(new):
            if row:
                assert_near(logits[i], logits_alone(gpu_decoder, rows[i][: done[i]]))


def test_hidden_states_and_best_logits(gpu_decoder: DeviceDecoder) -> None:
    prompt, wanted = CASES[HIDDEN_STATES["case"]]["prompt"], HIDDEN_STATES["values"]
    cache = gpu_decoder.new_cache(2, POSITIONS)
    cache.temperatures[:] = [0.5, 3.0]
    for rows in ([prompt, prompt], [[7], [9]]):
        output = append(gpu_decoder, cache, rows, hidden_states=True)
        if len(rows[0]) > 1:
            assert_near(output.hidden_states, [wanted, wanted], share=0.02)
        best, logits = output.best, output.logits
        assert best.logits.tolist() == (-np.sort(-logits, axis=1)[:, :64]).tolist()
        assert np.take_along_axis(logits, best.token_ids, 1).tolist() == best.logits.tolist()
        weights = np.exp((logits - best.logits[:, :1]) / [[0.5], [3.0]])
        assert np.allclose(best.totals, weights.sum(axis=1), rtol=1e-3)


def test_what_former_calls_left_is_not_read(gpu_decoder: DeviceDecoder) -> None:
    rows = random_rows([5, 3, 4])
    found = []
    for _ in range(2):
        cache = gpu_decoder.new_cache(3, 20)
        output = append(gpu_decoder, cache, rows, hidden_states=True)
        found.append([output.logits.tolist()])
        for step in ([[7], [8], [9]], [[1, 2, 3], [9], [5]], [[4], [4], [4]]):
            found[-1].append(append(gpu_decoder, cache, step).tolist())
        buffers, memory = cache.buffers, gpu_decoder._memory
        del cache, output
        not_a_number = np.full(buffers.shape.nbytes, 0xFF, np.uint8)  # in float16
        memory.write(buffers.pointer, not_a_number)
        memory.write(buffers.logits, not_a_number[: 4 * 3 * 300])
    assert found[0] == found[1]


# === Texts ===


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_recorded_steps_change_no_text(
    gpu_decoder: DeviceDecoder, plain_decoder: Any, cuda_bundle: Bundle, sampler: Sampler
) -> None:
    for prompts in (TEXTS[2:3], TEXTS):
        wanted = texts(plain_decoder, cuda_bundle, sampler, prompts)
        assert texts(gpu_decoder, cuda_bundle, sampler, prompts) == wanted
        assert texts(gpu_decoder, cuda_bundle, sampler, prompts) == wanted


class AllLogits:
    """A decoder whose best logits nobody sees."""

    def __init__(self, decoder: DeviceDecoder) -> None:
        self._decoder = decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def append(self, *arguments: Any, **options: Any) -> StepOutput:
        output = self._decoder.append(*arguments, **options)
        return StepOutput(output.logits, output.hidden_states)


@pytest.mark.parametrize("sampler", SAMPLERS[:5], ids=lambda sampler: type(sampler).__name__)
def test_draws_from_the_best_logits_are_those_from_all(
    gpu_decoder: DeviceDecoder, cuda_bundle: Bundle, sampler: Sampler
) -> None:
    wanted = texts(AllLogits(gpu_decoder), cuda_bundle, sampler)
    assert texts(gpu_decoder, cuda_bundle, sampler) == wanted


@pytest.mark.parametrize(
    "sampler",
    [TopKSampler(k=5, seed=1), TopPSampler(p=0.7, seed=1), RandomSampler(seed=1)],
    ids=lambda sampler: type(sampler).__name__,
)
def test_draws_of_a_float32_model_are_those_of_the_cpu(
    bundle: Bundle, decoder: Any, sampler: Sampler
) -> None:
    gpu: Any = open_decoder(bundle, "cuda", allow_cpu_nodes=True)
    for case in CASES:
        difference = logits_alone(gpu, case["prompt"]) - np.array(case["logits_after_prompt"])
        assert np.abs(difference).max() <= 1e-4
    assert texts(gpu, bundle, sampler) == texts(decoder, bundle, sampler)


def test_streams_and_stop_tokens(gpu_decoder: DeviceDecoder, cuda_bundle: Bundle) -> None:
    generator = Generator(gpu_decoder, cuda_bundle.tokenizer, "greedy")
    whole = generator.generate("The quick", max_length=40, stop_token_ids=None)
    assert "".join(generator.stream("The quick", max_length=40, stop_token_ids=None)) == whole
    prompt = CASES[2]["prompt"]
    ids = {"token_ids": np.zeros((2, 30), int), "padding_mask": np.zeros((2, 30), int)}
    ids["token_ids"][:, : len(prompt)] = prompt
    ids["padding_mask"][:, : len(prompt)] = 1
    ids["padding_mask"][1, len(prompt) - 1] = 0
    found = generator.generate(ids, stop_token_ids=None)
    stop = int(found["token_ids"][0, len(prompt) + 3])
    ended = generator.generate(ids, stop_token_ids=(stop,))
    first = found["token_ids"][0].tolist().index(stop, len(prompt))
    assert ended["padding_mask"][0].tolist() == [True] * (first + 1) + [False] * (29 - first)
    assert ended["token_ids"][0, : first + 1].tolist() == found["token_ids"][0, : first + 1].tolist()


def test_calls_of_a_shape_share_buffers_and_a_recording(
    cold_decoder: DeviceDecoder, plain_decoder: Any, cuda_bundle: Bundle
) -> None:
    recorded = cold_decoder._runs._recorded
    for prompts, capacity, count in (
        (["ab"], 30, 1),
        (["The quick"], 40, 1),
        (["ab", "The quick"], 40, 3),  # two rows, and the shorter prompt's when the other has ended
        (["ab"], 64, 4),
        (["ab"], 20, 4),
        (["ab", ""], 30, 4),
    ):
        generators = [
            Generator(one, cuda_bundle.tokenizer, "greedy") for one in (cold_decoder, plain_decoder)
        ]
        found = [one.generate(prompts, max_length=capacity, stop_token_ids=None) for one in generators]
        assert found[0] == found[1]
        assert len(recorded) == count


def test_threads_record_and_allocate_at_once(cold_decoder: DeviceDecoder, cuda_bundle: Bundle) -> None:
    """All shapes are new: one thread's recording must not meet another one's copies."""
    calls = 16
    samplers = [SAMPLERS[i % len(SAMPLERS)] for i in range(calls)]
    prompts = [TEXTS[i % 3 : i % 3 + 1 + i % 4] for i in range(calls)]
    barrier = threading.Barrier(calls)

    def call(i: int) -> Any:
        barrier.wait()
        return texts(cold_decoder, cuda_bundle, samplers[i], prompts[i])

    with ThreadPoolExecutor(calls) as pool:
        found = list(pool.map(call, range(calls)))
    wanted = [texts(cold_decoder, cuda_bundle, s, p) for s, p in zip(samplers, prompts, strict=True)]
    assert found == wanted


# === Where operators run ===


def test_no_operator_runs_on_the_cpu(gpu_decoder: DeviceDecoder) -> None:
    for phase in Phase:
        assert list(count_operators(gpu_decoder._sessions[phase])) == ["CUDAExecutionProvider"]


def test_a_portable_bundle_is_refused_with_the_counts(toy_bundle: Path) -> None:
    message = r"[0-9]+ of [0-9]+ operators would run on the CPU: .*; allow_cpu_nodes=True lets them"
    with pytest.raises(NodePlacementError, match=message):
        Generator.from_bundle(toy_bundle, "cuda")


def test_a_gpu_that_there_is_not(cuda_bundle_folder: Path) -> None:
    with pytest.raises(
        RuntimeMissingError, match=r"there is no cuda:99; this process may use cuda:0 \("
    ):
        Generator.from_bundle(cuda_bundle_folder, "cuda:99")


# === Memory ===


def level(decoder: DeviceDecoder) -> int:
    gc.collect()
    free = decoder._memory.available_bytes()
    assert free is not None
    return free


def test_a_cache_that_does_not_fit(gpu_decoder: DeviceDecoder, cuda_bundle: Bundle) -> None:
    generator = Generator(gpu_decoder, cuda_bundle.tokenizer, "greedy")
    text = generator.generate("ab", max_length=30)
    free = level(gpu_decoder)
    rows = free // CacheShape(gpu_decoder.config, "float16", 1, 30).nbytes + 1000
    with pytest.raises(CacheMemoryError, match=r"of the memory of cuda:0 are available") as raised:
        generator._engine.memory.new_cache(rows, 30)
    assert raised.value.needed > raised.value.allowed > 0
    with pytest.raises(DeviceMemoryError, match=r"does not fit in the memory of cuda:0, of which"):
        gpu_decoder.new_cache(rows, 30)
    assert generator.generate("ab", max_length=30) == text
    assert abs(level(gpu_decoder) - free) <= SLACK


def test_an_arena_below_the_weights(cuda_bundle: Bundle) -> None:
    with pytest.raises(
        DeviceMemoryError, match=r"the weights take 82\.1 KB, and max_arena_bytes is 80 KB"
    ):
        open_decoder(cuda_bundle, "cuda", max_arena_bytes=80_000)


def test_an_arena_that_is_too_small_for_a_run(cuda_bundle: Bundle) -> None:
    """ONNX Runtime refuses, when it opens the graph or at a prompt."""

    def use() -> None:
        decoder: Any = open_decoder(
            cuda_bundle, "cuda", max_arena_bytes=cuda_bundle.manifest.weights.size
        )
        rows = [[5] * 60] * 2000
        append(decoder, decoder.new_cache(len(rows), 62), rows)

    with pytest.raises(Exception, match=r"(?i)memory|alloc"):
        use()


Calls = Callable[[Generator], None]


def call_shapes(generator: Generator) -> None:
    for prompts in (["ab"], ["ab", "The quick"], ["a"] * 5):
        generator.generate(prompts, max_length=40, stop_token_ids=None)


def call_threads(generator: Generator) -> None:
    """As a server with a thread for each request."""
    thread = threading.Thread(target=generator.generate, args=(["ab"], 40))
    thread.start()
    thread.join()


def call_searches(generator: Generator) -> None:
    generator.compile("contrastive")
    generator.generate(["ab", "The quick"], max_length=30)
    generator.compile("beam")
    generator.generate(["ab", "The quick"], max_length=30)


@pytest.mark.parametrize("call", [call_shapes, call_threads, call_searches])
def test_memory_returns_to_its_level(cuda_bundle: Bundle, gpu_decoder: Any, call: Calls) -> None:
    generator = Generator(gpu_decoder, cuda_bundle.tokenizer, "greedy")
    for _ in range(3):
        call(generator)
    before = level(gpu_decoder)
    for _ in range(100):
        call(generator)
    assert abs(level(gpu_decoder) - before) <= SLACK
    assert generator.cache_bytes_in_use == 0


def test_a_generator_that_is_gone_gives_its_memory_back(
    cuda_bundle_folder: Path, gpu_decoder: DeviceDecoder
) -> None:
    def use(prompts: Sequence[str]) -> None:
        generator = Generator.from_bundle(cuda_bundle_folder, "cuda")
        generator.generate(list(prompts), max_length=40)

    use(TEXTS)
    before = level(gpu_decoder)
    for _ in range(5):
        use(TEXTS)
    assert abs(level(gpu_decoder) - before) <= SLACK

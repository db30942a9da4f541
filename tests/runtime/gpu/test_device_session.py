"""The decoder over a device's buffers gives Keras's numbers, on whatever memory and in any pieces."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundle import Bundle
from runtime.gpu import session as device_session
from runtime.gpu.buffers import ScratchBuffer
from runtime.gpu.cuda_library import CudaLibrary
from runtime.gpu.memory import CudaMemory, DeviceMemory, HostMemory
from runtime.gpu.session import DeviceDecoder
from runtime.session_opener import SessionOpener
from tests.runtime.gpu.stub_cuda import StubCuda
from tests.runtime.test_session import RAGGED, append, check_some_rows, logits_alone, random_rows
from tests.runtime.toy import CASES, HIDDEN, HIDDEN_STATES, POSITIONS, VOCABULARY, ragged_pieces

KINDS = ["fp16", "fp16 in pieces", "fp32 of the host", "fp32 of the host in pieces", "fp16 on CUDA"]


def over(bundle: Bundle, memory: DeviceMemory) -> DeviceDecoder:
    """A bundle run by the CPU on the buffers of a memory."""
    opener = SessionOpener(bundle, 1)
    graphs = bundle.manifest.graphs
    opened = {graph: opener.packed_in_memory(graph) for graph in dict.fromkeys(graphs.values())}
    sessions = {phase: opened[graph] for phase, graph in graphs.items()}
    return DeviceDecoder(bundle.manifest, sessions, memory, cuda_graphs=False)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if "pieces" in name:
        monkeypatch.setattr(device_session, "RUN_TOKENS", 3)
    return name


@pytest.fixture
def decoder(request: pytest.FixtureRequest, kind: str, bundle: Bundle, cuda_bundle: Bundle) -> Any:
    if "CUDA" not in kind:
        return over(cuda_bundle if "fp16" in kind else bundle, HostMemory())
    stub: StubCuda = request.getfixturevalue("stub_cuda")
    stub.reset(memory=1 << 24)
    memory = CudaMemory(CudaLibrary(stub.path), 0)
    memory.device_type = "cpu"  # where its buffers are
    return over(cuda_bundle, memory)


@pytest.fixture
def close(kind: str) -> Callable[[Any, Any], None]:
    """Compares logits [..., vocabulary], or hidden states, with those of a float32 model."""

    def check(found: Any, wanted: Any) -> None:
        wanted = np.asarray(wanted)
        assert found.shape == wanted.shape
        assert found.dtype == np.float32
        difference = np.abs(found - wanted)
        if "fp32" in kind:
            assert difference.max() <= 2e-5
        else:  # about one percent of a standard deviation; single ones further off
            assert difference.max() <= 0.06
            assert np.sqrt((difference**2).mean()) <= 0.01 * wanted.std()

    return check


# === Keras's numbers ===


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['prompt'])} tokens")
def test_a_row_gives_the_logits_of_keras(decoder: Any, close: Any, case: Any) -> None:
    prompt, continuation = case["prompt"], case["continuation"]
    cache = decoder.new_cache(1, len(prompt) + len(continuation))
    close(append(decoder, cache, [prompt])[0], case["logits_after_prompt"])
    for token in continuation[:-1]:
        logits = append(decoder, cache, [[token]])
    if len(continuation) > 1:
        close(logits[0], case["logits_at_end"])
    assert cache.lengths.tolist() == [len(prompt) + len(continuation) - 1]


def test_a_ragged_batch_gives_the_logits_of_keras(decoder: Any, close: Any) -> None:
    cases = CASES[:5]
    cache = decoder.new_cache(len(cases), POSITIONS)
    logits = append(decoder, cache, [case["prompt"] for case in cases])
    close(logits, [case["logits_after_prompt"] for case in cases])
    for tokens in zip(*(case["continuation"][:-1] for case in cases), strict=True):
        logits = append(decoder, cache, [[token] for token in tokens])
    close(logits, [case["logits_at_end"] for case in cases])


def test_hidden_states_are_those_of_keras(decoder: Any, close: Any) -> None:
    prompt, wanted = CASES[HIDDEN_STATES["case"]]["prompt"], HIDDEN_STATES["values"]
    output = append(decoder, decoder.new_cache(1, POSITIONS), [prompt], hidden_states=True)
    close(output.hidden_states, [wanted])
    cache = decoder.new_cache(2, POSITIONS)
    for token, states in zip(prompt, wanted, strict=True):
        output = append(decoder, cache, [[token], [token]], hidden_states=True)
        close(output.hidden_states, [[states]] * 2)
        assert output.logits.shape == (2, VOCABULARY)
    ones = np.ones(2, np.int32)
    assert decoder.append(cache, np.array([[2], [5]]), ones).hidden_states is None


@pytest.mark.parametrize(("prompts", "pieces", "capacity"), RAGGED)
def test_ragged_pieces_equal_whole_rows(
    decoder: Any, close: Any, prompts: list[int], pieces: list[list[int]], capacity: int
) -> None:
    rows = random_rows([n + sum(piece[i] for piece in pieces) for i, n in enumerate(prompts)])
    cache = decoder.new_cache(len(rows), capacity)
    for new, done in ragged_pieces(rows, [prompts, *pieces]):
        logits = append(decoder, cache, new)
        assert cache.lengths.tolist() == done
        for i, row in enumerate(new):
            if row:
                close(logits[i], logits_alone(decoder, rows[i][: done[i]]))


def test_rows_that_ended_wait_at_the_last_position_of_the_model(decoder: Any, close: Any) -> None:
    """What a waiting row writes goes to its spare slot, at a position that the model has."""
    full, going = random_rows([POSITIONS, POSITIONS])
    cache = decoder.new_cache(2, POSITIONS)
    append(decoder, cache, [full, going[: POSITIONS - 3]])
    wanted = append(decoder, decoder.new_cache(1, POSITIONS), [full[:-1]])
    for token in going[POSITIONS - 3 :]:
        logits = append(decoder, cache, [[], [token]])
    assert cache.lengths.tolist() == [POSITIONS, POSITIONS]
    close(logits[1], logits_alone(decoder, going))
    cache.roll_back(np.array([POSITIONS - 2, 5], np.int32))
    close(append(decoder, cache, [full[-2:-1], []])[0], wanted[0])
    with pytest.raises(ValueError, match="a row of 66 tokens has no room in a cache of 64"):
        append(decoder, cache, [[1, 2, 3], [1]])


@pytest.mark.parametrize("hidden_states", [False, True])
def test_some_rows_of_a_cache_take_tokens(decoder: Any, close: Any, hidden_states: bool) -> None:
    check_some_rows(decoder, close, hidden_states)


# === How a prompt is run ===


def runs_of(decoder: DeviceDecoder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Notes the rows and columns of each run that follows."""
    found = []
    pieces = decoder._pieces

    def noted(*arguments: Any) -> Any:
        for rows, columns in pieces(*arguments):
            found.append((rows.stop - rows.start, columns.stop - columns.start))
            yield rows, columns

    monkeypatch.setattr(decoder, "_pieces", noted)
    return found


def test_the_runs_of_prompts(device_decoder: DeviceDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = runs_of(device_decoder, monkeypatch)
    rows = random_rows([4, 2, 4, 1, 3])
    append(device_decoder, device_decoder.new_cache(5, 20), rows)
    assert runs == [(5, 4)]
    monkeypatch.setattr(device_session, "RUN_TOKENS", 9)
    cache = device_decoder.new_cache(5, 20)
    append(device_decoder, cache, rows)  # together, as many rows as fit
    assert runs[1:] == [(2, 4), (2, 4), (1, 4)]
    append(device_decoder, cache, [[1] * 11, [], [2], [3] * 2, []])  # after a past: row by row
    assert runs[4:] == [(1, 9), (1, 2), (1, 1), (1, 2)]
    assert cache.lengths.tolist() == [15, 2, 5, 3, 3]
    append(device_decoder, cache, [[1]] * 5)
    assert len(runs) == 8  # a decode step is no prompt
    append(device_decoder, cache, [[1]] * 5, hidden_states=True)
    assert runs[8:] == [(5, 1)]
    monkeypatch.setattr(device_session, "RUN_TOKENS", 2)
    append(device_decoder, cache, [[1]] * 5, hidden_states=True)
    assert runs[9:] == [(2, 1), (2, 1), (1, 1)]
    none = device_decoder.append(cache, np.ones((5, 3), np.int64), np.zeros(5, np.int32))
    assert runs[12:] == []
    assert none.logits.shape == (5, VOCABULARY)


def test_groups_of_rows_give_what_they_give_together(
    device_decoder: DeviceDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows([6, 2, 5, 1, 6])
    wanted = append(device_decoder, device_decoder.new_cache(5, 20), rows, hidden_states=True)
    best, logits = wanted.best.rows(range(5)), wanted.logits
    monkeypatch.setattr(device_session, "RUN_TOKENS", 13)
    found = append(device_decoder, device_decoder.new_cache(5, 20), rows, hidden_states=True)
    assert np.abs(found.logits - logits).max() <= 0.01
    assert np.abs(found.best.logits - best.logits).max() <= 0.01
    assert np.allclose(found.best.totals, best.totals, rtol=0.01)
    for i, row in enumerate(rows):
        difference = found.hidden_states[i, : len(row)] - wanted.hidden_states[i, : len(row)]
        assert np.abs(difference).max() <= 0.01


def test_runs_share_one_scratch_buffer_that_grows(device_decoder: DeviceDecoder) -> None:
    memory = device_decoder._memory
    assert isinstance(memory, HostMemory)
    device_decoder._scratch = ScratchBuffer(memory)
    cache = device_decoder.new_cache(2, 20)
    before = set(memory._buffers)
    append(device_decoder, cache, [[1, 2], [3]])
    (small,) = set(memory._buffers) - before
    append(device_decoder, cache, [[1, 2], [3]])
    assert set(memory._buffers) - before == {small}
    append(device_decoder, cache, [[1, 2], [3]], hidden_states=True)
    (large,) = set(memory._buffers) - before
    assert memory._buffers[large].nbytes > 2 * 4 * device_decoder.config.embedding_width
    with pytest.raises(Exception, match="indices element out of data bounds"):
        device_decoder.append(cache, np.full((2, 2), VOCABULARY), np.array([2, 2]))
    assert set(memory._buffers) - before == {large}
    assert cache.lengths.tolist() == [6, 3]
    device_decoder._scratch = ScratchBuffer(memory)
    assert set(memory._buffers) == before


# === The best logits ===


def test_the_best_are_the_largest_of_all(device_decoder: DeviceDecoder) -> None:
    cache = device_decoder.new_cache(3, 20)
    cache.temperatures[:] = [0.5, 1.0, 3.0]
    for rows in (random_rows([5, 1, 3]), [[7], [8], [9]]):
        output = append(device_decoder, cache, rows, hidden_states=True)
        best, logits = output.best, output.logits
        assert (best.vocabulary, best.logits.shape, best.token_ids.shape) == (300, (3, 64), (3, 64))
        assert best.logits.tolist() == (-np.sort(-logits, axis=1)[:, :64]).tolist()
        assert np.take_along_axis(logits, best.token_ids, 1).tolist() == best.logits.tolist()
        weights = np.exp((logits - best.logits[:, :1]) / [[0.5], [1.0], [3.0]])
        assert np.allclose(best.totals, weights.sum(axis=1), rtol=1e-4)


def test_all_logits_may_be_read_when_the_cache_is_gone(device_decoder: DeviceDecoder) -> None:
    """They are read when they are looked at: until then the buffers are no other cache's."""
    first, second = random_rows([5, 5])
    wanted = logits_alone(device_decoder, first)
    lengths = np.array([5], np.int32)
    kept = device_decoder.append(device_decoder.new_cache(1, 9), np.array([first]), lengths)
    gc.collect()
    logits_alone(device_decoder, second)
    assert kept.logits.tolist() == [wanted.tolist()]


def test_nothing_of_former_calls_is_seen(device_decoder: DeviceDecoder) -> None:
    rows = random_rows([5, 3, 4])
    steps = [rows, [[7], [8], []], [[1, 2, 3], [9], [5]], [[4], [4], [4]]]
    wanted = None
    for _ in range(2):
        cache = device_decoder.new_cache(3, 20)
        memory, buffers = device_decoder._memory, cache.buffers
        found = []
        for step in steps:
            output = append(device_decoder, cache, step, hidden_states=True)
            given = [i for i, row in enumerate(step) if row]
            found += [output.logits[given].tolist(), output.best.rows(given).totals.tolist()]
        if wanted is not None:
            assert found == wanted
        wanted = found
        del cache, output
        not_a_number = np.full(buffers.shape.nbytes, 0xFF, np.uint8)  # in float16
        memory.write(buffers.pointer, not_a_number)
        memory.write(buffers.logits, not_a_number[: 4 * 3 * VOCABULARY])
        buffers.results.views["best_logits"][...] = np.nan
    assert device_decoder.new_cache(3, 20).buffers is buffers


# === Errors ===


def test_what_does_not_fit_the_cache(device_decoder: DeviceDecoder, tmp_path: Path) -> None:
    cache = device_decoder.new_cache(2, 4)
    with pytest.raises(ValueError, match="a row of 5 tokens has no room in a cache of 4"):
        append(device_decoder, cache, [[1, 2, 3, 4, 5], [1]])
    with pytest.raises(ValueError, match=r"a cache of 2 rows got 3 rows from 0 on and \(3,\) lengths"):
        append(device_decoder, cache, [[1], [1], [1]])
    for lengths in ([3, 1], [1, -1]):
        with pytest.raises(ValueError, match=r"new_lengths must be from 0 to 2, got \["):
            device_decoder.append(cache, np.ones((2, 2), np.int64), np.array(lengths))
    assert cache.lengths.tolist() == [0, 0]
    assert (device_decoder.device, device_decoder.cache_dtype) == ("cpu", "float16")
    assert device_decoder.config.hidden_dim == HIDDEN

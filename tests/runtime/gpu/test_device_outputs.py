"""Logits of named tokens on a device's buffers: Keras's own, those of single steps, in any split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundle import Bundle
from runtime.gpu import session as device_session
from runtime.gpu.memory import HostMemory
from runtime.gpu.session import DeviceDecoder
from tests.runtime.gpu.test_device_session import over
from tests.runtime.test_session import append, random_rows
from tests.runtime.test_session_outputs import named, step_by_step
from tests.runtime.toy import CASES, HIDDEN, HIDDEN_STATES, POSITIONS, VOCABULARY

KINDS = ["fp16", "fp16 in pieces", "fp32 of the host", "fp32 of the host in pieces"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if "pieces" in name:
        monkeypatch.setattr(device_session, "RUN_TOKENS", 3)
    return name


@pytest.fixture
def decoder(kind: str, bundle: Bundle, cuda_bundle: Bundle) -> DeviceDecoder:
    return over(cuda_bundle if "fp16" in kind else bundle, HostMemory())


def assert_close(kind: str, found: np.ndarray, wanted: Any, tolerance: float = 1e-5) -> None:
    """Within a tolerance in float32; of float16 about one percent of a standard deviation."""
    wanted = np.asarray(wanted)
    difference = np.abs(found - wanted)
    if "fp32" in kind:
        assert difference.max() <= tolerance
    else:
        assert difference.max() <= 0.06
        assert np.sqrt((difference**2).mean()) <= 0.01 * wanted.std()


def test_logits_at_every_position_are_those_of_keras(
    decoder: DeviceDecoder, kind: str, toy_bundle: Path
) -> None:
    """The hidden states of the training forward pass, times the table that begins the weights."""
    prompt = CASES[HIDDEN_STATES["case"]]["prompt"]
    table = np.fromfile(toy_bundle / "weights.bin", np.float32, VOCABULARY * HIDDEN)
    wanted = np.array(HIDDEN_STATES["values"]) @ table.reshape(VOCABULARY, HIDDEN).T
    found = named(decoder, decoder.new_cache(1, POSITIONS), [prompt], range(len(prompt)))
    assert_close(kind, found, wanted, 2e-5)


def test_all_positions_equal_single_steps(decoder: DeviceDecoder, kind: str) -> None:
    (row,) = random_rows([20])
    wanted = step_by_step(decoder, row)
    found = named(decoder, decoder.new_cache(1, 20), [row], range(20))
    assert_close(kind, found, wanted)


def test_ragged_rows_after_a_past_in_any_order(decoder: DeviceDecoder, kind: str) -> None:
    rows, past, width = random_rows([12, 9, 3, 7]), [5, 0, 3, 1], 9
    cache = decoder.new_cache(4, 20)
    append(decoder, cache, [row[:n] for row, n in zip(rows, past, strict=True)])
    cache.temperatures[:] = 0.25
    wanted = {}
    for i, (row, n) in enumerate(zip(rows, past, strict=True)):
        for j, logits in enumerate(step_by_step(decoder, row, n) if len(row) > n else ()):
            wanted[i * width + j] = logits
    outputs = np.random.default_rng(0).permutation([*wanted, *wanted])
    new = [row[n:] for row, n in zip(rows, past, strict=True)]
    found = named(decoder, cache, new, outputs)
    assert cache.lengths.tolist() == [12, 9, 3, 7]
    assert_close(kind, found, [wanted[i] for i in outputs])


@pytest.mark.parametrize(
    ("past", "new"), [([], [5, 5]), ([], [5, 2]), ([3, 1], [1, 1]), ([3, 1], [4, 2])]
)
def test_those_of_the_last_tokens_are_the_same_to_the_bit(
    decoder: DeviceDecoder, past: list[int], new: list[int]
) -> None:
    found = []
    for outputs in (None, [i * max(new) + n - 1 for i, n in enumerate(new)]):
        cache = decoder.new_cache(2, 20)
        if past:
            append(decoder, cache, random_rows(past))
        rows = random_rows(new, seed=1)
        found.append(
            append(decoder, cache, rows) if outputs is None else named(decoder, cache, rows, outputs)
        )
    assert found[0].tobytes() == found[1].tobytes()


def test_a_step_after_named_outputs_gives_its_own(decoder: DeviceDecoder, kind: str) -> None:
    """What named outputs are written to is no buffer of steps."""
    rows = random_rows([6, 4])
    wanted = [step_by_step(decoder, row)[-1] for row in rows]
    cache = decoder.new_cache(2, 9)
    append(decoder, cache, [row[:-2] for row in rows])
    output = append(decoder, cache, [row[-2:-1] for row in rows], outputs=np.array([1, 0, 1]))
    assert output.best is None
    last = decoder.append(cache, np.array([row[-1:] for row in rows]), np.ones(2, np.int32))
    assert_close(kind, last.logits, wanted)
    if last.best is not None:
        assert last.best.logits.tolist() == (-np.sort(-last.logits, axis=1)[:, :64]).tolist()


def test_hidden_states_beside_named_logits(decoder: DeviceDecoder) -> None:
    rows = random_rows([5, 3])
    wanted = append(decoder, decoder.new_cache(2, 9), rows, hidden_states=True)
    states = wanted.hidden_states.copy()
    options = {"hidden_states": True, "outputs": np.array([1, 7, 0])}
    output = append(decoder, decoder.new_cache(2, 9), rows, **options)
    assert output.logits.shape == (3, VOCABULARY)
    assert output.hidden_states.tobytes() == states.tobytes()


def test_padding_no_outputs_and_others(decoder: DeviceDecoder) -> None:
    cache = decoder.new_cache(3, 20)
    assert np.isfinite(named(decoder, cache, [[5, 6, 7], [], [8]], range(9))).all()
    assert named(decoder, cache, [[5, 6, 7], [], [8]], []).shape == (0, VOCABULARY)
    assert np.isfinite(named(decoder, cache, [[], [], []], [2, 0])).all()
    assert cache.lengths.tolist() == [6, 0, 2]
    with pytest.raises(
        ValueError, match="outputs must be from 0 to 5, as there are 3 rows of 2 tokens"
    ):
        append(decoder, cache, [[1, 2], [3], [4]], outputs=np.array([6]))
    assert cache.lengths.tolist() == [6, 0, 2]


def test_runs_are_shorter_where_many_logits_are_wanted(
    device_decoder: DeviceDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_session, "OUTPUT_TOKENS", 4)
    sizes = []
    pieces = device_decoder._pieces

    def noted(*arguments: Any) -> Any:
        for rows, columns in pieces(*arguments):
            sizes.append((rows.stop - rows.start) * (columns.stop - columns.start))
            yield rows, columns

    monkeypatch.setattr(device_decoder, "_pieces", noted)
    (row,) = random_rows([10])
    wanted = named(device_decoder, device_decoder.new_cache(1, 10), [row], [9, 4, 0, 1])
    assert sizes == [10]
    found = named(device_decoder, device_decoder.new_cache(1, 10), [row], [9, 4, 0, 1, 1])
    assert sizes == [10, 4, 4, 2]
    assert np.abs(found[:4] - wanted).max() <= 0.06

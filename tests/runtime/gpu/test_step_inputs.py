"""What a graph is told of a run, by the contract's revision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphs.contract import ModelConfig, Phase, Revision, graph_inputs
from runtime.gpu.memory import HostMemory
from runtime.gpu.packed_arrays import PackedArrays
from runtime.gpu.step_inputs import decode_layout, fill, input_layout

CONFIG = ModelConfig(
    vocabulary_size=9,
    num_layers=1,
    num_heads=1,
    hidden_dim=4,
    intermediate_dim=4,
    max_sequence_length=16,
)


def filled(
    revision: Revision,
    token_ids: list[list[int]],
    past: list[int],
    new: list[int],
    temperatures: list[float] | None = None,
    outputs: list[int] | None = None,
) -> dict[str, Any]:
    ids = np.array(token_ids)
    wanted = None if outputs is None else np.array(outputs)
    count = len(past) if outputs is None else len(outputs)
    layout = input_layout(*ids.shape, count, revision)
    memory = HostMemory()
    inputs = PackedArrays(memory, layout, memory.allocate(layout.nbytes))
    for view in inputs.views.values():
        view.fill(99)
    heat = np.array(temperatures or [1.0] * count, np.float32)
    lengths = np.array(past, np.int32), np.array(new, np.int32)
    fill(inputs, revision, ids, *lengths, heat, CONFIG.max_sequence_length - 1, wanted)
    return {name: view.tolist() for name, view in inputs.views.items()}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("revision", Revision)
def test_the_inputs_are_those_of_the_contract(revision: Revision, phase: Phase) -> None:
    sizes = {"batch": 3, "sequence": 5, "outputs": 3 if phase is Phase.DECODE else 7}
    wanted = {
        spec.name: (np.dtype(spec.dtype), tuple(sizes.get(d, d) for d in spec.shape))  # type: ignore[call-overload]
        for spec in graph_inputs(CONFIG, phase, "float16", revision)
        if not spec.name.startswith("past_key") and spec.name != "total_length"
    }
    layout = decode_layout(3, revision) if phase is Phase.DECODE else input_layout(3, 5, 7, revision)
    assert {name: (dtype, shape) for name, dtype, shape in layout.arrays} == wanted


def test_graphs_of_the_host_are_told_lengths() -> None:
    assert filled(Revision.HOST, [[5, 6], [7, 0]], [0, 3], [2, 1]) == {
        "input_ids": [[5, 6], [7, 0]],
        "past_lengths": [0, 3],
        "new_lengths": [2, 1],
        "output_positions": [1, 2],
    }


def test_a_decode_step() -> None:
    """Rows without a new token are told as if they had one, which no one reads."""
    assert filled(Revision.DEVICE, [[5], [6], [0], [7]], [0, 3, 16, 15], [1, 1, 0, 1]) == {
        "input_ids": [[5], [6], [0], [7]],
        "positions": [[0], [3], [15], [15]],
        "output_positions": [0, 1, 2, 3],
        "last_positions": [0, 3, 16, 15],
        "inverse_temperatures": [[1]] * 4,
    }


def test_ragged_prompts() -> None:
    assert filled(Revision.DEVICE, [[5, 6, 7], [8, 0, 0], [0, 0, 0]], [0, 0, 0], [3, 1, 0]) == {
        "input_ids": [[5, 6, 7], [8, 0, 0], [0, 0, 0]],
        "positions": [[0, 1, 2]] * 3,
        "output_positions": [2, 3, 6],
        "last_positions": [2, 0, 0],
        "inverse_temperatures": [[1]] * 3,
    }


def test_several_tokens_after_a_past() -> None:
    told = filled(Revision.DEVICE, [[5, 6, 7, 8]], [14], [2])
    assert told["positions"] == [[14, 15, 15, 15]]
    assert (told["output_positions"], told["last_positions"]) == ([1], [15])


@pytest.mark.parametrize("revision", Revision)
def test_outputs_that_a_caller_names(revision: Revision) -> None:
    told = filled(revision, [[5, 6, 7], [8, 0, 0]], [0, 0], [3, 1], outputs=[2, 0, 3, 0, 1])
    assert told["output_positions"] == [2, 0, 3, 0, 1]
    if revision is Revision.DEVICE:
        assert told["last_positions"] == [2, 0]
        assert told["inverse_temperatures"] == [[1]] * 5


def test_temperatures_are_told_inverted() -> None:
    told = filled(Revision.DEVICE, [[1], [2], [3]], [0] * 3, [1] * 3, [0.5, 1e-30, 4.0])
    assert told["inverse_temperatures"] == [[2.0], [float(np.float32(1) / np.float32(1e-30))], [0.25]]

"""The pass that ranks logits and sums their weights, on graphs made by hand."""

from __future__ import annotations

import numpy as np
import pytest

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package)

import onnx_ir as ir  # noqa: E402

from graphs.contract import ModelConfig  # noqa: E402
from graphs.passes.best_logits import MOST_PARTS, rank_logits, vocabulary_parts  # noqa: E402
from graphs.program import Program  # noqa: E402
from tests.graphs.pass_helpers import Arrays, node_list, ops, parse, run_model  # noqa: E402

TEXT = """
g (float[outputs, SIZE] x, float[outputs, 1] inverse_temperatures)
    => (float[outputs, SIZE] logits, float[outputs, SIZE] hidden_states, float[outputs, SIZE] cache)
{
    logits = Identity (x)
    hidden_states = Neg (x)
    cache = Identity (x)
}
"""
CUT, WHOLE, SMALL = 512, 521, 40  # two parts, a prime number, and fewer than are ranked
OUTPUTS = ["logits", "hidden_states", "best_logits", "best_ids", "weight_totals", "cache"]
RANDOM = np.random.default_rng(0)


def ranked(size: int) -> Program:
    program = parse(TEXT.replace("SIZE", str(size)), set(), ModelConfig(size, 1, 1, 8, 8, 8))
    assert rank_logits(program) == 1
    return program


def run(size: int, logits: np.ndarray, inverse_temperatures: list[float] | None = None) -> Arrays:
    scales = np.ones(len(logits)) if inverse_temperatures is None else inverse_temperatures
    inputs = {"x": logits, "inverse_temperatures": np.array(scales, np.float32)[:, None]}
    return run_model(ir.to_proto(ranked(size).model), inputs)


@pytest.mark.parametrize("size", [CUT, WHOLE, SMALL, 2048, 1])
def test_the_largest_logits_in_falling_order(size: int) -> None:
    logits = (3 * RANDOM.standard_normal((3, size))).astype(np.float32)
    found = run(size, logits)
    assert list(found) == OUTPUTS
    count = min(64, size)
    order = np.argsort(-logits, axis=1)[:, :count]
    np.testing.assert_array_equal(found["best_ids"], order)
    np.testing.assert_array_equal(found["best_logits"], np.take_along_axis(logits, order, axis=1))
    assert (found["best_logits"].dtype, found["best_ids"].dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(found["logits"], logits)
    np.testing.assert_array_equal(found["hidden_states"], -logits)


@pytest.mark.parametrize("size", [CUT, WHOLE, SMALL])
def test_weights_are_summed_at_each_row_s_temperature(size: int) -> None:
    logits = (3 * RANDOM.standard_normal((4, size))).astype(np.float32)
    inverse = [1.0, 0.25, 8.0, 1000.0]
    found = run(size, logits, inverse)["weight_totals"]
    assert found.shape == (4,)
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    np.testing.assert_allclose(
        found, np.exp(shifted * np.array(inverse)[:, None]).sum(axis=1), rtol=1e-5
    )
    assert found[3] == pytest.approx(1, abs=0.1)  # the largest alone
    flat = run(size, np.full((1, size), 7, np.float32), [0.5])["weight_totals"]
    np.testing.assert_array_equal(flat, [size])


@pytest.mark.parametrize("size", [CUT, WHOLE])
def test_equal_logits_are_each_ranked_once(size: int) -> None:
    """More of them than are ranked, in all parts; fewer larger ones among them are all there."""
    logits = np.zeros((2, size), np.float32)
    larger = [0, 3, size // 2 - 1, size // 2, size - 1]
    logits[0, larger] = 5
    logits[1, larger[::-1]] = [1, 2, 3, 4, 5]
    found = run(size, logits)
    best, ids = found["best_logits"], found["best_ids"]
    np.testing.assert_array_equal(best[0], [5.0] * 5 + [0.0] * 59)
    np.testing.assert_array_equal(best[1], [5.0, 4.0, 3.0, 2.0, 1.0] + [0.0] * 59)
    assert sorted(ids[0, :5]) == larger
    assert ids[1, :5].tolist() == larger
    for row in range(2):
        assert len(set(ids[row].tolist())) == 64
        np.testing.assert_array_equal(logits[row, ids[row]], best[row])


@pytest.mark.parametrize("size", [CUT, WHOLE])
def test_all_of_the_best_in_one_part(size: int) -> None:
    logits = RANDOM.standard_normal((1, size)).astype(np.float32)
    logits[0, :64] += 100
    found = run(size, logits)
    assert sorted(found["best_ids"][0]) == list(range(64))


@pytest.mark.parametrize("size", [CUT, WHOLE, SMALL])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_logit_that_is_no_number_shows_in_the_sum(size: int, place: str) -> None:
    """The ranking may put it anywhere or nowhere; a caller looks at the sum."""
    logits = RANDOM.standard_normal((2, size)).astype(np.float32)
    logits[1, 0 if place == "first" else -1] = np.nan
    found = run(size, logits)["weight_totals"]
    assert np.isfinite(found[0])
    assert np.isnan(found[1])


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_logits(value: float) -> None:
    logits = RANDOM.standard_normal((1, CUT)).astype(np.float32)
    logits[0, 5] = value
    found = run(CUT, logits)
    if value > 0:  # as an overflow gives it
        assert np.isnan(found["weight_totals"][0])
    else:  # as a caller masks a token
        assert 5 not in found["best_ids"][0]
        others = np.delete(logits, 5)
        expected = np.exp((others - others.max()).astype(np.float64)).sum()
        np.testing.assert_allclose(found["weight_totals"], [expected], rtol=1e-5)


# === What is written ===


def test_parts_of_vocabularies() -> None:
    """Of a size that divides, and four times what is ranked of each; as many as there may be."""
    sizes = {50272: 32, 4096: 16, 512: 2, 511: 1, 256: 1, 521: 1, 50265: 45, 2**20: 64, 288: 1}
    assert {size: vocabulary_parts(size, 64) for size in sizes} == sizes
    assert vocabulary_parts(40, 40) == 1
    for size in (50272, 4096, 2**20, 50265):
        parts = vocabulary_parts(size, 64)
        assert size % parts == 0
        assert size // parts >= 4 * 64
        assert parts <= MOST_PARTS


def test_a_vocabulary_is_ranked_in_parts_where_it_can_be() -> None:
    rest = {"Identity": 2, "Neg": 1, "Slice": 1, "Sub": 1, "Mul": 1, "Exp": 1, "ReduceSum": 1}
    in_parts = {"Reshape": 3, "TopK": 2, "Add": 1, "GatherElements": 1}
    assert ops(ranked(CUT).graph) == rest | in_parts
    assert ops(ranked(WHOLE).graph) == ops(ranked(SMALL).graph) == rest | {"TopK": 1}


def test_shapes_and_types_are_those_of_the_contract() -> None:
    found = [
        (v.name, str(v.dtype.numpy()), [str(d.value) if not isinstance(d, int) else d for d in v.shape])
        for v in ranked(CUT).graph.outputs
    ]
    assert found[2:5] == [
        ("best_logits", "float32", ["outputs", 64]),
        ("best_ids", "int64", ["outputs", 64]),
        ("weight_totals", "float32", ["outputs"]),
    ]


def test_a_graph_of_the_host_stays() -> None:
    text = TEXT.replace("SIZE", "512").replace("inverse_temperatures", "other")
    program = parse(text, set(), ModelConfig(512, 1, 1, 8, 8, 8))
    nodes = node_list(program.graph)
    assert rank_logits(program) == 0
    assert node_list(program.graph) == nodes
    assert len(program.graph.outputs) == 3


def test_a_second_time_there_is_nothing_to_do() -> None:
    program = ranked(CUT)
    nodes = node_list(program.graph)
    assert rank_logits(program) == 0
    assert node_list(program.graph) == nodes
    assert [value.name for value in program.graph.outputs] == OUTPUTS

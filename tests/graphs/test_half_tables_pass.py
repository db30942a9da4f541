"""The pass that stores the position embedding in float16, on graphs made by hand."""

from __future__ import annotations

import numpy as np
import pytest

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package)

from graphs.contract import ModelConfig  # noqa: E402
from graphs.passes.half_tables import halve_positions  # noqa: E402
from graphs.passes.matching import FUSED_DOMAIN  # noqa: E402
from tests.graphs.pass_helpers import edited, node_list  # noqa: E402
from tests.graphs.quantized_helpers import POSITIONS, TABLE, parse_named, run_stored  # noqa: E402

CONFIG = ModelConfig(6, 1, 1, 4, 4, 8)
LOOKUP = """
g (int64[n] places, float[8, 4] positions) => (float[n, 4] rows)
{
    rows = Gather <axis = 0> (positions, places)
}
"""


@pytest.mark.parametrize("edits", [[], [(" <axis = 0>", "")]], ids=["axis", "default axis"])
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_rows_come_from_a_table_of_float16(
    edits: list[tuple[str, str]], shape: tuple[int, ...]
) -> None:
    text = edited(LOOKUP, edits)
    if len(shape) == 2:
        text = edited(text, [("[n] places", "[n, 3] places"), ("[n, 4] rows", "[n, 3, 4] rows")])
    program = parse_named(text, {"positions"}, CONFIG)
    assert halve_positions(program) == 1
    name = f"{POSITIONS}.fp16"
    gather, cast = program.graph
    assert (gather.op_type, gather.inputs[0].name, gather.inputs[1].name) == ("Gather", name, "places")
    assert (cast.op_type, cast.outputs[0].name) == ("Cast", "rows")
    assert program.shape_of(name) == (8, 4)
    assert program.weights[name].dtype.numpy() == np.float16
    assert not program.weights[POSITIONS].uses()
    assert FUSED_DOMAIN not in program.model.opset_imports
    table = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float16)
    places = np.arange(7, 7 - np.prod(shape), -1).reshape(shape)
    rows = run_stored(program, {name: table}, {"places": places})["rows"]
    np.testing.assert_array_equal(rows, table[places].astype(np.float32))


OTHERS = {
    "another axis": [("axis = 0", "axis = 1"), ("[n, 4] rows", "[8, n] rows")],
    "another operator": [("Gather <axis = 0>", "GatherND"), ("[n] places", "[n, 1] places")],
    "a computed table": [
        ("    rows =", "    other = Abs (positions)\n    rows ="),
        ("(positions, places)", "(other, places)"),
    ],
}


@pytest.mark.parametrize("edits", OTHERS.values(), ids=OTHERS)
def test_what_is_no_lookup_of_positions_stays(edits: list[tuple[str, str]]) -> None:
    program = parse_named(edited(LOOKUP, edits), {"positions"}, CONFIG)
    nodes = node_list(program.graph)
    assert halve_positions(program) == 0
    assert node_list(program.graph) == nodes


def test_other_tables_stay() -> None:
    program = parse_named(LOOKUP, {"positions"}, CONFIG, positions=TABLE)
    assert halve_positions(program) == 0
    assert list(program.weights) == [TABLE]


def test_a_second_time_there_is_nothing_to_do() -> None:
    program = parse_named(LOOKUP, {"positions"}, CONFIG)
    assert [halve_positions(program), halve_positions(program)] == [1, 0]

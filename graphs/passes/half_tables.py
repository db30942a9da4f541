"""Stores the position embedding in float16, which halves a table that rows are only looked up in."""

from __future__ import annotations

import onnx_ir as ir

from graphs.passes.dense import replace_span
from graphs.passes.matching import remove_unused
from graphs.program import Program
from graphs.quantization import half_weight, is_position_table


def halve_positions(program: Program) -> int:
    """Rewrites the lookup of positions; returns how many."""
    for node in program.graph:
        if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
            continue
        weight = program.name_of(node.inputs[0])
        if weight is None or not is_position_table(weight):
            continue
        table = program.stored(half_weight(weight, program.shape_of(weight)))
        rows = ir.node("Gather", [table, node.inputs[1]], {"axis": 0})
        numbers = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT})
        replace_span(program, node.outputs[0], [rows, numbers], numbers.outputs[0])
        remove_unused(program.graph)
        return 1
    return 0

"""Takes what follows from lengths as inputs, and leaves no operator that would run on the host.

The trace derives positions and the attention's lengths from two inputs, in shape arithmetic that an
accelerator's runtime leaves to the CPU. `Revision.DEVICE` of the contract has the host compute those
few integers, so that a step can be replayed as one CUDA graph.
"""

from __future__ import annotations

import onnx_ir as ir

from graphs.contract import (
    HIDDEN_STATES,
    LAST_POSITIONS,
    POSITIONS,
    TOTAL_LENGTH,
    Phase,
    Revision,
    TensorSpec,
    graph_inputs,
)
from graphs.passes.matching import producer, remove_unused
from graphs.program import Program
from graphs.quantization import is_position_table

_LAST_POSITIONS_INPUT, _TOTAL_LENGTH_INPUT = 5, 6  # of GroupQueryAttention


def take_positions(program: Program) -> int:
    """Gives a graph of any number of tokens the inputs of `Revision.DEVICE`.

    Returns how many attentions it has.
    """
    graph = program.graph
    attentions = [node for node in graph if node.op_type == "GroupQueryAttention"]
    places = _position_lookup(program)
    hidden = next(value for value in graph.outputs if value.name == HIDDEN_STATES)
    reshaped = producer(hidden, "Reshape")
    if len(attentions) != program.config.num_layers or not (places and reshaped):
        return 0
    taken = _replace_inputs(program)
    places.replace_input_with(1, taken[POSITIONS])
    for node in attentions:
        node.replace_input_with(_LAST_POSITIONS_INPUT, taken[LAST_POSITIONS])
        node.replace_input_with(_TOTAL_LENGTH_INPUT, taken[TOTAL_LENGTH])
    # The rows are laid out as the output is, so that there is nothing to reshape.
    same = ir.node("Identity", [reshaped.inputs[0]])
    ir.convenience.replace_nodes_and_values(graph, reshaped, [reshaped], [same], [hidden], same.outputs)
    remove_unused(graph)
    return len(attentions)


def _position_lookup(program: Program) -> ir.Node | None:
    for node in program.graph:
        weight = program.name_of(node.inputs[0]) if node.op_type == "Gather" else None
        if weight is not None and is_position_table(weight):
            return node
    return None


def _replace_inputs(program: Program) -> dict[str, ir.Value]:
    """Puts the inputs of `Revision.DEVICE` in the place of the graph's; returns new ones by name."""
    graph = program.graph
    kept = {value.name or "": value for value in graph.inputs}
    specs = graph_inputs(program.config, Phase.PREFILL, revision=Revision.DEVICE)
    new = {spec.name: _value(spec) for spec in specs if spec.name not in kept}
    graph.inputs.clear()
    graph.inputs.extend({**kept, **new}[spec.name] for spec in specs)
    return new


def _value(spec: TensorSpec) -> ir.Value:
    dtype = ir.DataType[spec.dtype.upper().replace("FLOAT32", "FLOAT")]
    return ir.Value(name=spec.name, shape=ir.Shape(spec.shape), type=ir.TensorType(dtype))

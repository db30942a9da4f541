"""Makes all of a graph compute in floats of 16 bits, but for what needs more.

Weights, activations and the cache become float16 or bfloat16. The operators sum in float32 where it
matters: products, the statistics of norms, the softmax of attention. Logits and hidden states leave the
graph as float32, as the contract has them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphs.contract import HIDDEN_STATES, LOGITS
from graphs.passes.dense import replace_span
from graphs.passes.matching import FUSED_DOMAIN, remove_unused
from graphs.program import Program
from graphs.quantization import half_weight, is_layer_matrix

_DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def narrow_to_fp16(program: Program) -> int:
    """Makes a graph compute in float16; returns how many weights became that."""
    return _narrow(program, "fp16")


def narrow_to_bf16(program: Program) -> int:
    """Makes a graph compute in bfloat16; returns how many weights became that."""
    return _narrow(program, "bf16")


def _narrow(program: Program, storage: str) -> int:
    dtype = _DTYPES[storage]
    count = 0
    for name, value in list(program.weights.items()):
        if value.dtype is ir.DataType.FLOAT and value.uses():
            _store(program, name, value, storage)
            count += 1
    _convert_constants(program.graph, dtype.numpy())
    _widen_outputs(program)
    _retype(program.graph, dtype)
    remove_unused(program.graph)
    return count


def _store(program: Program, name: str, value: ir.Value, storage: str) -> None:
    """Has a weight's users read it as it is stored."""
    stored = program.stored(half_weight(name, program.shape_of(name), storage))
    for use in list(value.uses()):
        node = use.node
        if is_layer_matrix(name) and node.op_type == "MatMul":
            product = ir.node(
                "FusedMatMul", [node.inputs[0], stored], {"transB": 1}, domain=FUSED_DOMAIN
            )
            replace_span(program, node.outputs[0], [product], product.outputs[0])
            program.model.opset_imports[FUSED_DOMAIN] = 1
        elif is_layer_matrix(name):
            raise AssertionError(f"{name} is read by {node.op_type}, which takes no transpose")
        else:
            node.replace_input_with(use.idx, stored)


def _convert_constants(graph: ir.Graph, dtype: np.dtype) -> None:
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype is ir.DataType.FLOAT:
            value.const_value = ir.tensor(tensor.numpy().astype(dtype), name=value.name)
            value.dtype = ir.DataType.from_numpy(dtype)


def _widen_outputs(program: Program) -> None:
    graph = program.graph
    for output in [value for value in graph.outputs if value.name in (LOGITS, HIDDEN_STATES)]:
        node = output.producer()
        assert node is not None
        if node.op_type == "Cast":  # it is wide
            continue
        position = list(graph.outputs).index(output)
        wide = ir.node("Cast", [output], {"to": ir.DataType.FLOAT})
        graph.insert_after(node, [wide])
        result = wide.outputs[0]
        result.name, result.shape = output.name, output.shape
        result.dtype = ir.DataType.FLOAT
        graph.outputs[position] = result
        output.name = f"narrow_{result.name}"


def _retype(graph: ir.Graph, dtype: ir.DataType) -> None:
    """The caches' dtype; what lies between is for the runtime to infer."""
    ends = {id(value) for value in graph.outputs}
    for node in graph:
        for value in node.outputs:
            if id(value) not in ends:
                value.type = None
    for value in [*graph.inputs, *graph.outputs]:
        name = value.name or ""
        if value.dtype is ir.DataType.FLOAT and name.startswith(("past_key", "present.")):
            value.dtype = dtype

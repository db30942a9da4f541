"""The operators that the graphs of a bundle may hold, each with its rule: those this project writes.

An operator without a rule does not exist, so there is no control flow, no function and nothing that is
loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runtime.graph_check import attention_rules as attention
from runtime.graph_check import element_rules as elements
from runtime.graph_check import product_rules as products
from runtime.graph_check import quantized_rules as quantized
from runtime.graph_check import shape_rules as shapes
from runtime.graph_check import spans
from runtime.graph_check.element_rules import Rule
from runtime.graph_check.messages import FLOAT, FUSED, INT, INTS, STANDARD


@dataclass(frozen=True, eq=False)
class Operator:
    """What an operator takes and gives.

    Attributes:
        rule: checks its inputs and tells its outputs.
        inputs: how many it has, at least and at most.
        outputs: how many it may have.
        gaps: inputs that may be left out before others.
        output_gaps: outputs that must be left out where there are others behind them.
        attributes: their kinds by name.
        packed: which input ONNX Runtime makes a copy of, where it is constant, as its kernel wants it.
    """

    rule: Rule
    inputs: tuple[int, int] = (1, 1)
    outputs: tuple[int, ...] = (1,)
    gaps: frozenset[int] = frozenset()
    output_gaps: frozenset[int] = frozenset()
    attributes: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    packed: int | None = None


_TWO, _THREE = (2, 2), (3, 3)
_AXIS = {"axis": INT}
_TRANSPOSED = {"transB": INT}

OPERATORS: dict[tuple[str, str], Operator] = {
    # Of shapes.
    (STANDARD, "Cast"): Operator(shapes.cast, attributes={"to": INT}),
    (STANDARD, "Concat"): Operator(shapes.concat, (1, 4), attributes=_AXIS),
    (STANDARD, "Expand"): Operator(shapes.expand, _TWO),
    (STANDARD, "Gather"): Operator(shapes.gather, _TWO, attributes=_AXIS),
    (STANDARD, "GatherElements"): Operator(shapes.gather_elements, _TWO, attributes=_AXIS),
    (STANDARD, "Identity"): Operator(shapes.identity),
    (STANDARD, "Range"): Operator(shapes.range_, _THREE),
    (STANDARD, "Reshape"): Operator(shapes.reshape, _TWO),
    (STANDARD, "ScatterND"): Operator(shapes.scatter_nd, _THREE),
    (STANDARD, "Shape"): Operator(shapes.shape, attributes={"start": INT}),
    (STANDARD, "Slice"): Operator(shapes.slice_, (4, 5)),
    (STANDARD, "Split"): Operator(
        shapes.split, outputs=(3,), attributes={"axis": INT, "num_outputs": INT}
    ),
    (STANDARD, "Squeeze"): Operator(shapes.squeeze, _TWO),
    (STANDARD, "TopK"): Operator(shapes.top_k, _TWO, outputs=(2,), attributes=_AXIS),
    (STANDARD, "Transpose"): Operator(shapes.transpose, attributes={"perm": INTS}),
    (STANDARD, "Unsqueeze"): Operator(shapes.unsqueeze, _TWO),
    # Of elements.
    (STANDARD, "Add"): Operator(elements.arithmetic(spans.add), _TWO),
    (STANDARD, "And"): Operator(elements.both, _TWO),
    (STANDARD, "Equal"): Operator(elements.equal, _TWO),
    (STANDARD, "Erf"): Operator(elements.activation),
    (STANDARD, "Exp"): Operator(elements.activation),
    (STANDARD, "LayerNormalization"): Operator(
        elements.layer_normalization, (2, 3), attributes={"axis": INT, "epsilon": FLOAT}
    ),
    (STANDARD, "Less"): Operator(elements.less, _TWO),
    (STANDARD, "LessOrEqual"): Operator(elements.less_or_equal, _TWO),
    (STANDARD, "Max"): Operator(elements.greater, _TWO),
    (STANDARD, "Min"): Operator(elements.smaller, _TWO),
    (STANDARD, "Mul"): Operator(elements.arithmetic(spans.multiply), _TWO),
    (STANDARD, "Not"): Operator(elements.invert),
    (STANDARD, "Pow"): Operator(elements.power, _TWO),
    (STANDARD, "ReduceMax"): Operator(
        elements.reduce_max, (1, 2), attributes={"keepdims": INT, "noop_with_empty_axes": INT}
    ),
    (STANDARD, "ReduceSum"): Operator(elements.reduce_sum, _TWO, attributes={"keepdims": INT}),
    (STANDARD, "Relu"): Operator(elements.activation),
    (STANDARD, "Sigmoid"): Operator(elements.activation),
    (STANDARD, "Softmax"): Operator(elements.softmax),
    (STANDARD, "Sub"): Operator(elements.arithmetic(spans.subtract), _TWO),
    (STANDARD, "Tanh"): Operator(elements.activation),
    (STANDARD, "Where"): Operator(elements.where, _THREE),
    # Products of floats.
    (STANDARD, "Gemm"): Operator(products.gemm, (2, 3), attributes=_TRANSPOSED, packed=1),
    (STANDARD, "MatMul"): Operator(products.matmul, _TWO, packed=1),
    (FUSED, "FusedMatMul"): Operator(products.fused_matmul, _TWO, attributes=_TRANSPOSED, packed=1),
    # Of codes.
    (FUSED, "GatherBlockQuantized"): Operator(
        quantized.gather_block_quantized,
        (4, 4),
        attributes=dict.fromkeys(("bits", "block_size", "gather_axis", "quantize_axis"), INT),
    ),
    (FUSED, "MatMulIntegerToFloat"): Operator(
        quantized.matmul_integer_to_float, (5, 7), gaps=frozenset({5, 6}), packed=1
    ),
    (FUSED, "MatMulNBits"): Operator(
        quantized.matmul_n_bits,
        (3, 6),
        gaps=frozenset({3, 4}),
        attributes=dict.fromkeys(("K", "N", "accuracy_level", "bits", "block_size"), INT),
        packed=1,
    ),
    (FUSED, "QGemm"): Operator(quantized.qgemm, (6, 6), packed=3),
    (STANDARD, "QuantizeLinear"): Operator(quantized.quantize_linear, _THREE),
    # Of the bundles that `bench.dynamic_int8` makes for comparison.
    (STANDARD, "DequantizeLinear"): Operator(quantized.dequantize_linear, _THREE),
    (STANDARD, "DynamicQuantizeLinear"): Operator(quantized.dynamic_quantize_linear, outputs=(3,)),
    (STANDARD, "MatMulInteger"): Operator(quantized.matmul_integer, (4, 4), packed=1),
    # Attention and its norm.
    (FUSED, "GroupQueryAttention"): Operator(
        attention.group_query_attention,
        (7, 7),
        outputs=(3,),
        gaps=frozenset({1, 2}),
        attributes={**dict.fromkeys(("do_rotary", "kv_num_heads", "num_heads"), INT), "scale": FLOAT},
    ),
    (FUSED, "SkipLayerNormalization"): Operator(
        attention.skip_layer_normalization,
        (3, 5),
        outputs=(1, 4),
        gaps=frozenset({3}),
        output_gaps=frozenset({1, 2}),
        attributes={"epsilon": FLOAT},
    ),
}

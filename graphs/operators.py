"""What the graphs of a bundle may hold: the operators and attributes that this project writes.

ONNX Runtime runs whatever a graph asks for. A graph of these operators alone has no control flow, no
functions and nothing that is loaded from elsewhere. `tests/graphs/test_operators.py` compares the lists
with what all models, precisions and targets give.
"""

from __future__ import annotations

STANDARD, FUSED = "", "com.microsoft"
# `ai.onnx.ml` is named by every graph that tf2onnx writes, and none of its operators is used.
DOMAINS = (STANDARD, FUSED, "ai.onnx.ml")

# Attributes by operator. All of them are numbers or lists of numbers.
OPERATORS: dict[tuple[str, str], frozenset[str]] = {
    (domain, name): frozenset(attributes.split())
    for domain, name, attributes in (
        (STANDARD, "Add", ""),
        (STANDARD, "And", ""),
        (STANDARD, "Cast", "to"),
        (STANDARD, "Concat", "axis"),
        (STANDARD, "Equal", ""),
        (STANDARD, "Erf", ""),
        (STANDARD, "Exp", ""),
        (STANDARD, "Expand", ""),
        (STANDARD, "Gather", "axis"),
        (STANDARD, "GatherElements", "axis"),
        (STANDARD, "Gemm", "transB"),
        (STANDARD, "Identity", ""),
        (STANDARD, "LayerNormalization", "axis epsilon"),
        (STANDARD, "Less", ""),
        (STANDARD, "LessOrEqual", ""),
        (STANDARD, "MatMul", ""),
        (STANDARD, "Max", ""),
        (STANDARD, "Min", ""),
        (STANDARD, "Mul", ""),
        (STANDARD, "Not", ""),
        (STANDARD, "Pow", ""),
        (STANDARD, "QuantizeLinear", ""),
        (STANDARD, "Range", ""),
        (STANDARD, "ReduceMax", "keepdims noop_with_empty_axes"),
        (STANDARD, "ReduceSum", "keepdims"),
        (STANDARD, "Relu", ""),
        (STANDARD, "Reshape", ""),
        (STANDARD, "ScatterND", ""),
        (STANDARD, "Shape", "start"),
        (STANDARD, "Sigmoid", ""),
        (STANDARD, "Slice", ""),
        (STANDARD, "Softmax", ""),
        (STANDARD, "Split", "axis num_outputs"),
        (STANDARD, "Squeeze", ""),
        (STANDARD, "Sub", ""),
        (STANDARD, "Tanh", ""),
        (STANDARD, "TopK", "axis"),
        (STANDARD, "Transpose", "perm"),
        (STANDARD, "Unsqueeze", ""),
        (STANDARD, "Where", ""),
        (FUSED, "FusedMatMul", "transB"),
        (FUSED, "GatherBlockQuantized", "bits block_size gather_axis quantize_axis"),
        (FUSED, "GroupQueryAttention", "do_rotary kv_num_heads num_heads scale"),
        (FUSED, "MatMulIntegerToFloat", ""),
        (FUSED, "MatMulNBits", "K N accuracy_level bits block_size"),
        (FUSED, "QGemm", ""),
        (FUSED, "SkipLayerNormalization", "epsilon"),
        # Of the bundles that `bench.dynamic_int8` makes for comparison.
        (STANDARD, "DequantizeLinear", ""),
        (STANDARD, "DynamicQuantizeLinear", ""),
        (STANDARD, "MatMulInteger", ""),
    )
}

# Where integer constants are no sizes, and may be larger than any of the model's: ends of slices that
# mean "to the end", and numbers that tensors are compared with or filled with.
UNBOUNDED_INPUTS = frozenset({("Slice", 2), ("Equal", 1), ("Where", 1)})

"""The messages of ONNX that a bundle's graphs hold, by the numbers of their fields.

See https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. A field that is not here is an error: there
are no functions, subgraphs, sparse or quantized tensors to look into.
"""

from __future__ import annotations

MODEL = {1: "ir_version", 2: "producer_name", 3: "producer_version", 5: "model_version"}
MODEL |= {4: "domain", 6: "doc_string", 7: "graph", 8: "opset_import"}
GRAPH = {1: "node", 2: "name", 5: "initializer", 10: "doc_string", 11: "input", 12: "output"}
GRAPH |= {13: "value_info"}
NODE = {1: "input", 2: "output", 3: "name", 4: "op_type", 5: "attribute", 6: "doc_string", 7: "domain"}
ATTRIBUTE = {1: "name", 2: "f", 3: "i", 8: "ints", 20: "type"}
TENSOR = {1: "dims", 2: "data_type", 5: "int32_data", 7: "int64_data", 4: "float_data", 8: "name"}
TENSOR |= {9: "raw_data", 12: "doc_string", 13: "external_data", 14: "data_location"}
ENTRY = {1: "key", 2: "value"}
OPSET = {1: "domain", 2: "version"}
VALUE = {1: "name", 2: "type", 3: "doc_string"}
TYPE = {1: "tensor_type", 6: "denotation"}
TENSOR_TYPE = {1: "elem_type", 2: "shape"}
SHAPE = {1: "dim"}
DIMENSION = {1: "value", 2: "parameter", 3: "denotation"}

# ONNX's numbers of dtypes: NumPy's names.
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool"}
DTYPES |= {10: "float16", 16: "bfloat16"}
BYTES = {"float32": 4, "uint8": 1, "int8": 1, "int32": 4, "int64": 8, "bool": 1}
BYTES |= {"float16": 2, "bfloat16": 2}
EXTERNAL = 1  # the location of a tensor whose data is in another file
# Kinds of attributes: ONNX's number, and the field that has the value.
FLOAT, INT, INTS = (1, "f"), (2, "i"), (7, "ints")

# Versions of the operators: shapes follow from these alone. `ai.onnx.ml` is named by every graph that
# tf2onnx writes, and none of its operators is used.
STANDARD, FUSED = "", "com.microsoft"
OPSETS = {STANDARD: 18, FUSED: 1, "ai.onnx.ml": 2}

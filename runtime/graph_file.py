"""Looks at a graph file before ONNX Runtime does: a stranger's may ask for anything.

Reads the messages of ONNX (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto) with the standard
library alone. A field that the exporter does not write is an error, so that there are no functions,
subgraphs, sparse or quantized tensors to look into.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from math import prod

from graphs.contract import (
    ModelConfig,
    Phase,
    Revision,
    TensorSpec,
    graph_inputs,
    graph_outputs,
)
from graphs.operators import DOMAINS, OPERATORS, UNBOUNDED_INPUTS
from runtime.wire_format import (
    GraphFileError,
    Message,
    integers,
    number,
    only,
    parts,
    read_message,
    text,
)

MAX_INLINE_BYTES = 4 * 1024**2  # of the tensors in a graph file; those of the presets take 50 kB
NODES_PER_LAYER, OTHER_NODES = 250, 500
SMALLEST_BOUND = 1024  # of integer constants, where all of the model's sizes are smaller

# Fields by number, in the order of the messages: what is not here is an error.
MODEL = {1: "ir_version", 2: "producer_name", 3: "producer_version", 5: "model_version"}
MODEL |= {4: "domain", 6: "doc_string", 7: "graph", 8: "opset_import"}
GRAPH = {1: "node", 2: "name", 5: "initializer", 10: "doc_string", 11: "input", 12: "output"}
GRAPH |= {13: "value_info"}
NODE = {1: "input", 2: "output", 3: "name", 4: "op_type", 5: "attribute", 6: "doc_string", 7: "domain"}
ATTRIBUTE = {1: "name", 2: "f", 3: "i", 7: "floats", 8: "ints", 20: "type"}
TENSOR = {1: "dims", 2: "data_type", 5: "int32_data", 7: "int64_data", 4: "float_data", 8: "name"}
TENSOR |= {9: "raw_data", 12: "doc_string", 13: "external_data", 14: "data_location"}
ENTRY = {1: "key", 2: "value"}
OPSET = {1: "domain", 2: "version"}
VALUE = {1: "name", 2: "type", 3: "doc_string"}
TYPE = {1: "tensor_type", 6: "denotation"}
TENSOR_TYPE = {1: "elem_type", 2: "shape"}
SHAPE = {1: "dim"}
DIMENSION = {1: "value", 2: "parameter", 3: "denotation"}

# ONNX's numbers of dtypes: NumPy's name and bits.
DTYPES = {1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 6: ("int32", 32), 7: ("int64", 64)}
DTYPES |= {9: ("bool", 8), 10: ("float16", 16), 16: ("bfloat16", 16)}
INTEGERS = {6: "i", 7: "q"}
EXTERNAL = 1


@dataclass(frozen=True)
class GraphLimits:
    """What a graph file may hold.

    Attributes:
        config: sizes of the model.
        phase: whose inputs and outputs it has.
        cache_dtype: NumPy name of the cache's dtype.
        weights_name: the one file that it may point into.
        weights_size: bytes of that file.
        revision: of the contract that it follows.
    """

    config: ModelConfig
    phase: Phase
    cache_dtype: str
    weights_name: str
    weights_size: int
    revision: Revision = Revision.HOST

    @property
    def largest(self) -> int:
        """What an integer that may be a size is at most."""
        c = self.config
        sizes = (c.vocabulary_size, 3 * c.hidden_dim, c.intermediate_dim, c.embedding_width)
        return max(*sizes, c.max_sequence_length, SMALLEST_BOUND)


def check_graph_file(data: bytes, limits: GraphLimits) -> None:
    """Checks that a graph reads its weights from the bundle and computes with the known operators.

    Args:
        data: the file's content.
        limits: what it may hold.

    Raises:
        GraphFileError: naming what is wrong.
    """
    model = read_message(data, MODEL)
    for opset in parts(model, "opset_import", OPSET):
        if (domain := text(opset, "domain")) not in DOMAINS:
            raise GraphFileError(f"wants operators of {domain!r}; known are those of {DOMAINS}")
    graph = only(model, "graph", GRAPH)
    contract = (limits.config, limits.phase, limits.cache_dtype, limits.revision)
    names = _check_values(graph, "input", graph_inputs(*contract))
    _check_values(graph, "output", graph_outputs(*contract))
    constants = _check_initializers(graph, limits)
    twice = [
        name for name, count in Counter([*names, *(name for name, _ in constants)]).items() if count > 1
    ]
    if twice:
        raise GraphFileError(f"has several values of one name: {twice[:5]}")
    _check_nodes(graph, dict(constants), limits)


def _check_values(graph: Message, kind: str, specs: list[TensorSpec]) -> list[str]:
    values = graph.get(kind, [])
    if len(values) != len(specs):
        raise GraphFileError(
            f"breaks the graph contract: it has {len(values)} {kind}s, not {len(specs)}"
        )
    for value, spec in zip(parts(graph, kind, VALUE), specs, strict=True):
        tensor = only(only(value, "type", TYPE), "tensor_type", TENSOR_TYPE)
        dims = [
            number(dim, "value") if "value" in dim else text(dim, "parameter")
            for dim in parts(only(tensor, "shape", SHAPE), "dim", DIMENSION)
        ]
        dtype = DTYPES.get(number(tensor, "elem_type"), ("of another dtype", 0))[0]
        found = (text(value, "name"), dtype, tuple(dims))
        if found != (spec.name, spec.dtype, spec.shape):
            wanted = (spec.name, spec.dtype, spec.shape)
            raise GraphFileError(f"breaks the graph contract: an {kind} is {found}, not {wanted}")
    return [spec.name for spec in specs]


def _check_initializers(graph: Message, limits: GraphLimits) -> list[tuple[str, list[int]]]:
    """Names of the constants, each with the integers that it holds in the file itself."""
    found, inline = [], 0
    for tensor in parts(graph, "initializer", TENSOR):
        name, kind = text(tensor, "name"), number(tensor, "data_type")
        if kind not in DTYPES:
            raise GraphFileError(f"has the tensor {name!r} of a dtype that bundles do not have: {kind}")
        shape = integers(tensor.get("dims", []))
        if any(size < 0 for size in shape):
            raise GraphFileError(f"has the tensor {name!r} of shape {shape}")
        needed = -(-prod(shape) * DTYPES[kind][1] // 8)
        if number(tensor, "data_location") == EXTERNAL:
            _check_external(name, tensor, needed, limits)
            found.append((name, list[int]()))
            continue
        size, values = _inline(tensor, kind)
        if size != needed:
            raise GraphFileError(
                f"has {size} bytes of the tensor {name!r} of shape {shape}, not {needed}"
            )
        inline += size
        found.append((name, values))
    if inline > MAX_INLINE_BYTES:
        raise GraphFileError(f"holds {inline} bytes of tensors, at most {MAX_INLINE_BYTES} are allowed")
    return found


def _inline(tensor: Message, kind: int) -> tuple[int, list[int]]:
    """Bytes of a tensor in the graph file, and its values if they are integers of 32 or 64 bits."""
    kinds = [name for name in ("raw_data", "float_data", "int32_data", "int64_data") if name in tensor]
    if "external_data" in tensor or len(kinds) > 1:
        raise GraphFileError(f"has the tensor {text(tensor, 'name')!r} in several places")
    if kinds == ["float_data"]:
        packed = [value for value in tensor["float_data"] if isinstance(value, bytes)]
        return 4 * (len(tensor["float_data"]) - len(packed)) + sum(map(len, packed)), []
    if kinds in (["int32_data"], ["int64_data"]):
        values = integers(tensor[kinds[0]])
        return len(values) * DTYPES[kind][1] // 8, values
    raw = tensor.get("raw_data", [b""])[-1]
    if not isinstance(raw, bytes):
        raise GraphFileError(f"is damaged: {text(tensor, 'name')!r} has no bytes")
    if kind in INTEGERS and len(raw) % (DTYPES[kind][1] // 8) == 0:
        count = len(raw) * 8 // DTYPES[kind][1]
        return len(raw), list(struct.unpack(f"<{count}{INTEGERS[kind]}", raw))
    return len(raw), []


def _check_external(name: str, tensor: Message, needed: int, limits: GraphLimits) -> None:
    entries = list(parts(tensor, "external_data", ENTRY))
    place = {text(entry, "key"): text(entry, "value") for entry in entries}
    if len(place) != len(entries) or set(place) != {"location", "offset", "length"}:
        raise GraphFileError(
            f"has the weight {name!r} at {place}; a location, offset and length are known"
        )
    if place["location"] != limits.weights_name:
        raise GraphFileError(
            f"has the weight {name!r} in {place['location']!r}, and only {limits.weights_name!r} "
            "may be read"
        )
    numbers = [place["offset"], place["length"]]
    if not all(digits.isascii() and digits.isdigit() and len(digits) < 19 for digits in numbers):
        raise GraphFileError(f"has the weight {name!r} at {place}, which are no numbers")
    offset, length = map(int, numbers)
    if length != needed:
        raise GraphFileError(f"has {length} bytes of the weight {name!r}, not {needed}")
    if offset + length > limits.weights_size:
        raise GraphFileError(
            f"has the weight {name!r} up to byte {offset + length} of {limits.weights_name}, which has "
            f"{limits.weights_size}"
        )


def _check_nodes(graph: Message, constants: dict[str, list[int]], limits: GraphLimits) -> None:
    most = NODES_PER_LAYER * limits.config.num_layers + OTHER_NODES
    if len(graph.get("node", ())) > most:
        raise GraphFileError(f"has {len(graph['node'])} operators, at most {most} are allowed")
    large = {name for name, values in constants.items() if max(values, default=0) > limits.largest}
    for node in parts(graph, "node", NODE):
        domain, kind = text(node, "domain"), text(node, "op_type")
        attributes = OPERATORS.get((domain, kind))
        if attributes is None:
            operator = f"{domain}.{kind}".lstrip(".")
            raise GraphFileError(f"wants the operator {operator!r}, which no bundle has")
        for attribute in parts(node, "attribute", ATTRIBUTE):
            _check_attribute(kind, attribute, attributes, limits.largest)
        if large:
            _check_sizes(kind, node, large, limits.largest)


def _check_attribute(kind: str, attribute: Message, known: frozenset[str], largest: int) -> None:
    name = text(attribute, "name")
    if name not in known:
        raise GraphFileError(f"has an operator {kind} with the attribute {name!r}, which no bundle has")
    values = integers([*attribute.get("i", []), *attribute.get("ints", [])])
    if any(abs(value) > largest for value in values):
        raise GraphFileError(
            f"has an operator {kind} with {name} {values}, at most {largest} is allowed"
        )


def _check_sizes(kind: str, node: Message, large: set[str], largest: int) -> None:
    """No constant that could become a size is larger than the model's."""
    for index, data in enumerate(node.get("input", ())):
        name = data.decode(errors="replace")
        if name in large and (kind, index) not in UNBOUNDED_INPUTS:
            raise GraphFileError(
                f"has an operator {kind} with a constant above {largest}, the most that a size of the "
                "model may be"
            )

"""Looks at a graph file before ONNX Runtime does: a stranger's may ask for anything."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from graphs.contract import (
    INPUT_IDS,
    LAST_POSITIONS,
    NEW_LENGTHS,
    OUTPUT_POSITIONS,
    PAST_LENGTHS,
    POSITIONS,
    TOTAL_LENGTH,
    TensorSpec,
    graph_inputs,
    graph_outputs,
)
from runtime.graph_check.constants import read_constants
from runtime.graph_check.limits import GraphLimits, LoadingCosts
from runtime.graph_check.messages import (
    ATTRIBUTE,
    DIMENSION,
    DTYPES,
    FLOAT,
    GRAPH,
    INTS,
    MODEL,
    NODE,
    OPSET,
    OPSETS,
    SHAPE,
    TENSOR_TYPE,
    TYPE,
    VALUE,
)
from runtime.graph_check.operators import OPERATORS, Operator
from runtime.graph_check.sizes import BATCH, CAPACITY, OUTPUTS, SEQUENCE, Dim, Shape
from runtime.graph_check.spans import UNKNOWN, Span
from runtime.graph_check.values import MAX_TOLD, Node, Value
from runtime.graph_check.wire_format import (
    GraphFileError,
    Message,
    integers,
    name_of,
    names_of,
    number,
    only,
    parts,
    read_message,
    text,
)

_SYMBOLS: dict[Dim | str, Dim] = {
    "batch": BATCH,
    "sequence": SEQUENCE,
    "capacity": CAPACITY,
    "outputs": OUTPUTS,
}


def check_graph_file(data: bytes, limits: GraphLimits) -> int:
    """Checks that a graph is one that this project could have written; see `runtime.graph_check`.

    Args:
        data: the file's content.
        limits: what it may hold.

    Returns:
        Bytes that its weights take at most, packed as kernels want them, with the original.

    Raises:
        GraphFileError: naming what is wrong.
    """
    return infer_values(data, limits)[1].pack_bytes


def infer_values(data: bytes, limits: GraphLimits) -> tuple[dict[bytes, Value], LoadingCosts]:
    """All values of a graph by name, and what loading it takes; see `check_graph_file`."""
    model = read_message(data, MODEL)
    _check_opsets(model)
    graph = only(model, "graph", GRAPH)
    contract = (limits.config, limits.phase, limits.cache_dtype, limits.revision)
    values: dict[bytes, Value] = {}
    for spec in _checked_specs(graph, "input", graph_inputs(*contract)):
        values[spec.name.encode()] = given_value(spec, limits)
    costs = LoadingCosts(limits)
    for name, constant in read_constants(graph, limits):
        _add(values, name, constant)
        costs.add_weight(constant)
    _infer(graph, values, costs)
    for spec in _checked_specs(graph, "output", graph_outputs(*contract)):
        _check_output(spec, values.get(spec.name.encode()))
    _check_told_shapes(graph, values)
    return values, costs


def _check_opsets(model: Message) -> None:
    found = [
        (text(opset, "domain"), number(opset, "version"))
        for opset in parts(model, "opset_import", OPSET)
    ]
    for domain, version in found:
        if domain not in OPSETS:
            raise GraphFileError(
                f"wants operators of {domain[:MAX_TOLD]!r}; known are those of {tuple(OPSETS)}"
            )
        if version != OPSETS[domain]:
            raise GraphFileError(
                f"wants version {version} of the operators of {domain!r}, not {OPSETS[domain]}"
            )
    if len({domain for domain, _ in found}) != len(found):
        raise GraphFileError("names the version of a domain's operators twice")


# === Inputs and outputs ===


def _checked_specs(graph: Message, kind: str, specs: list[TensorSpec]) -> list[TensorSpec]:
    """The contract's inputs or outputs, if the graph has just these."""
    values = graph.get(kind, [])
    if len(values) != len(specs):
        raise GraphFileError(
            f"breaks the graph contract: it has {len(values)} {kind}s, not {len(specs)}"
        )
    for value, spec in zip(parts(graph, kind, VALUE), specs, strict=True):
        tensor = only(only(value, "type", TYPE), "tensor_type", TENSOR_TYPE)
        dtype = DTYPES.get(number(tensor, "elem_type"), "of another dtype")
        found = (text(value, "name")[:MAX_TOLD], dtype, tuple(_told_shape(tensor)[:9]))
        if found != (spec.name, spec.dtype, spec.shape):
            wanted = (spec.name, spec.dtype, spec.shape)
            raise GraphFileError(f"breaks the graph contract: an {kind} is {found}, not {wanted}")
    return specs


def _told_shape(tensor: Message) -> list[int | str]:
    """The sizes that a file tells, numbers or names."""
    return [
        _signed(number(dim, "value")) if "value" in dim else text(dim, "parameter")[:MAX_TOLD]
        for dim in parts(only(tensor, "shape", SHAPE), "dim", DIMENSION)
    ]


def _signed(value: int) -> int:
    return integers([value])[0]


def _shape(spec: TensorSpec) -> Shape:
    return tuple(_SYMBOLS.get(dim, 0) if isinstance(dim, str) else dim for dim in spec.shape)


def given_value(spec: TensorSpec, limits: GraphLimits) -> Value:
    """An input of the graph, with what the runtime promises of its numbers."""
    tokens = limits.sequence
    last: dict[str, Dim] = {
        INPUT_IDS: limits.config.vocabulary_size - 1,
        PAST_LENGTHS: CAPACITY,
        NEW_LENGTHS: tokens,
        POSITIONS: limits.config.max_sequence_length - 1,
        OUTPUT_POSITIONS: BATCH * tokens - 1,
        LAST_POSITIONS: CAPACITY - 1,
        TOTAL_LENGTH: CAPACITY,
    }
    span = Span(0, last[spec.name]) if spec.name in last else UNKNOWN
    return Value(spec.dtype, _shape(spec), (span,), source=spec.name)


def _check_output(spec: TensorSpec, value: Value | None) -> None:
    wanted = Value(spec.dtype, _shape(spec))
    if value is None:  # no input and no constant has such a name and shape
        raise GraphFileError(f"breaks the graph contract: no operator makes {spec.name!r}")
    if (value.dtype, value.shape) != (wanted.dtype, wanted.shape):
        raise GraphFileError(
            f"breaks the graph contract: {spec.name!r} is computed as {value}, not as {wanted}"
        )


def _add(values: dict[bytes, Value], name: bytes, value: Value) -> None:
    if not name or name in values:
        told = name[:MAX_TOLD].decode(errors="replace")
        raise GraphFileError(f"has several values of one name, or one without a name: {told!r}")
    values[name] = value


# === Operators ===


def _infer(graph: Message, values: dict[bytes, Value], costs: LoadingCosts) -> None:
    """Adds what the operators make, in their order, each checked by its rule."""
    limits = costs.limits
    if len(graph.get("node", ())) > limits.most_nodes:
        raise GraphFileError(
            f"has {len(graph['node'])} operators, at most {limits.most_nodes} are allowed"
        )
    seen: set[bytes] = set()
    for message in parts(graph, "node", NODE):
        node, operator = _read_node(message, values, limits)
        if (name := name_of(message)) in seen:
            node.refuse("another operator has its name")
        seen.update([name] if name else [])
        made = operator.rule(node)
        given = [value for value in node.inputs if value is not None]
        fixed = all(value.constant for value in given) or (
            node.kind == "Shape" and made[0].numbers_are_fixed
        )
        for name, value in zip(node.outputs, made, strict=True):
            if not name:
                continue
            value.source, value.constant = node, fixed
            if (problem := limits.problem(value.shape, fixed=fixed)) is not None:
                node.refuse(f"it is {value}, {problem}")
            _add(values, name, value)
        if fixed and (problem := costs.fold(given, made)) is not None:
            node.refuse(problem)
        place = operator.packed
        if place is not None and (matrix := node.input(place)).constant:
            others = [
                value for value in node.inputs[place + 1 :] if value is not None and value.constant
            ]
            if (problem := costs.pack(matrix, others)) is not None:
                node.refuse(problem)


def _read_node(
    message: Message, values: dict[bytes, Value], limits: GraphLimits
) -> tuple[Node, Operator]:
    domain, kind = text(message, "domain"), text(message, "op_type")
    operator = OPERATORS.get((domain, kind))
    if operator is None:
        told = f"{domain}.{kind}".lstrip(".")[:MAX_TOLD]
        raise GraphFileError(f"wants the operator {told!r}, which no bundle has")
    outputs = names_of(message, "output")
    gaps = {i for i, name in enumerate(outputs) if not name}
    wanted = operator.output_gaps if len(outputs) > 1 else frozenset[int]()
    if len(outputs) not in operator.outputs or gaps != wanted:
        raise GraphFileError(f"has an operator {kind} with other outputs than it has in any bundle")
    names = names_of(message, "input")
    least, most = operator.inputs
    missing = {i for i, name in enumerate(names) if not name}
    if not least <= len(names) <= most or not missing <= operator.gaps:
        raise GraphFileError(f"has an operator {kind} with other inputs than it has in any bundle")
    inputs: list[Value | None] = []
    for name in names:
        value = values.get(name)
        if name and value is None:
            told = name[:MAX_TOLD].decode(errors="replace")
            raise GraphFileError(f"has an operator {kind} of {told!r}, which nothing before it makes")
        inputs.append(value if name else None)
    attributes = dict(_attributes(kind, operator, message))
    return Node(kind, inputs, outputs, attributes, limits), operator


def _attributes(kind: str, operator: Operator, message: Message) -> Iterator[tuple[str, Any]]:
    seen = set()
    for data in names_of(message, "attribute"):
        name, value = _attribute(kind, operator, data)
        if name in seen:
            raise GraphFileError(f"has an operator {kind} with the attribute {name!r} twice")
        seen.add(name)
        yield name, value


@lru_cache(1024)  # those of a layer are those of all others
def _attribute(kind: str, operator: Operator, data: bytes) -> tuple[str, Any]:
    attribute = read_message(data, ATTRIBUTE)
    name = text(attribute, "name")
    if name not in operator.attributes:
        raise GraphFileError(
            f"has an operator {kind} with the attribute {name[:MAX_TOLD]!r}, which no bundle has"
        )
    wanted, field = operator.attributes[name]
    values = attribute.get(field, [])
    plain = attribute.keys() <= {"name", "type", field} and number(attribute, "type") == wanted
    if plain and field == INTS[1]:
        return name, integers(values)
    # Another kind of field than ONNX's own would not be read as one.
    if not plain or len(values) != 1 or not isinstance(values[0], float if wanted == FLOAT[0] else int):
        raise GraphFileError(f"has an operator {kind} whose {name} is of another kind")
    return name, values[0] if wanted == FLOAT[0] else integers(values)[0]


# === What a file tells of values in between ===


def _check_told_shapes(graph: Message, values: dict[bytes, Value]) -> None:
    """ONNX Runtime believes what a file tells of shapes, so that it has to be true."""
    named = dict(_SYMBOLS)
    types: dict[bytes, tuple[str | None, list[int | str] | None]] = {}  # many have the same
    for told in parts(graph, "value_info", VALUE):
        name = name_of(told)
        value = values.get(name)
        if value is None or "type" not in told:  # what quantizing has taken out
            continue
        key = names_of(told, "type")[0]
        if key not in types or len(told["type"]) != 1:
            types[key] = _told_type(told)
        dtype, shape = types[key]
        if dtype is not None and dtype != value.dtype:
            raise _untrue(name, value)
        if shape is None:
            continue
        if len(shape) != len(value.shape):
            raise _untrue(name, value)
        for dim, size in zip(shape, value.shape, strict=True):
            # A name means one size wherever it is, and none any.
            if dim != "" and (named.setdefault(dim, size) if isinstance(dim, str) else dim) != size:
                raise _untrue(name, value)


def _told_type(told: Message) -> tuple[str | None, list[int | str] | None]:
    tensor = only(only(told, "type", TYPE), "tensor_type", TENSOR_TYPE)
    dtype = (
        DTYPES.get(number(tensor, "elem_type"), "of another dtype") if "elem_type" in tensor else None
    )
    return dtype, _told_shape(tensor) if "shape" in tensor else None


def _untrue(name: bytes, value: Value) -> GraphFileError:
    told = name[:MAX_TOLD].decode(errors="replace")
    return GraphFileError(f"tells another dtype or shape of {told!r} than it has: {value}")

"""Mutations of graphs, at several places at once: most do harm to shapes, some do none.

What is put in or rewired often has the dtype and shape of what was there, told by the check itself, so
that a good part of the graphs is sound and the others are nearly so.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from runtime.graph_check.graph_file import infer_values
from runtime.graph_check.limits import GraphLimits
from runtime.graph_check.values import Value

NUMBERS = (-1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 64, 1000, 10**9, 2**31, 2**40, -(10**9))
ELEMENTWISE = ("Relu", "Tanh", "Sigmoid", "Exp", "Erf", "Identity", "Softmax")
PAIRS = ("Add", "Mul", "Sub", "Max", "Min")
DTYPES = (1, 2, 3, 6, 7, 9, 10, 16)
MOST_VALUES = 10**7  # of a constant that is filled


@dataclass
class Seed:
    """A real graph that mutations begin with.

    Attributes:
        name: where it comes from.
        data: the file.
        limits: that it is checked with.
        model: the same, read.
        values: dtypes and shapes by name.
    """

    name: str
    data: bytes
    limits: GraphLimits
    model: Any = field(init=False)
    values: dict[str, Value] = field(init=False)

    def __post_init__(self) -> None:
        self.model = onnx.load_from_string(self.data)
        found, _ = infer_values(self.data, self.limits)
        self.values = {name.decode(): value for name, value in found.items()}


def mutate(seed: Seed, others: list[Seed], source: random.Random) -> bytes:
    """A graph with a few changes; `others` lend it operators."""
    model = onnx.ModelProto()
    model.CopyFrom(seed.model)
    for _ in range(source.choice((1, 1, 1, 2, 2, 3, 5))):
        kinds = HARMLESS if source.random() < 0.2 else ALL
        with contextlib.suppress(ValueError, OverflowError):  # of a constant that is damaged already
            source.choice(kinds)(model.graph, seed, others, source)
    if source.random() < 0.5:
        del model.graph.value_info[:]
    return model.SerializeToString()


def _alike(seed: Seed, name: str, source: random.Random) -> str:
    """Another value, mostly one of the same dtype and shape."""
    names = list(seed.values)
    value = seed.values.get(name)
    if value is not None and source.random() < 0.8:
        same = [n for n, v in seed.values.items() if (v.dtype, v.shape) == (value.dtype, value.shape)]
        if source.random() < 0.3:
            same = [n for n, v in seed.values.items() if v.shape == value.shape] or same
        names = same or names
    return source.choice(names)


def _rewire(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    node = source.choice(graph.node)
    if node.input:
        place = source.randrange(len(node.input))
        node.input[place] = _alike(seed, node.input[place], source)


def _swap(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    node = source.choice(graph.node)
    if len(node.input) > 1:
        a, b = source.sample(range(len(node.input)), 2)
        node.input[a], node.input[b] = node.input[b], node.input[a]


def _input_count(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    node = source.choice(graph.node)
    kept = list(node.input)
    match source.randrange(3):
        case 0 if kept:
            del kept[source.randrange(len(kept))]
        case 1 if kept:
            kept[source.randrange(len(kept))] = ""
        case _:
            kept.append(source.choice(["", source.choice(list(seed.values))]))
    node.input[:] = kept


def _delete(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    """Takes a node out; what read it reads one of its inputs instead."""
    place = source.randrange(len(graph.node))
    node = graph.node[place]
    inputs, outputs = [name for name in node.input if name], list(node.output)
    del graph.node[place]
    if inputs and source.random() < 0.8:
        for other in graph.node:
            for i, name in enumerate(other.input):
                if name and name in outputs:
                    other.input[i] = source.choice(inputs)


def _duplicate(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    place = source.randrange(len(graph.node))
    copy = onnx.NodeProto()
    copy.CopyFrom(graph.node[place])
    copy.name = ""
    for i, name in enumerate(copy.output):
        copy.output[i] = f"{name}/again" if name and source.random() < 0.95 else name
    graph.node.insert(place + 1, copy)
    _use_instead(graph, place + 2, list(graph.node[place].output), list(copy.output), source)


def _use_instead(graph: Any, start: int, old: list[str], new: list[str], source: random.Random) -> None:
    """Has some of the later nodes read other values."""
    names = dict(zip(old, new, strict=False))
    for node in graph.node[start:]:
        for i, name in enumerate(node.input):
            if name and name in names and source.random() < 0.7:
                node.input[i] = names[name]


def _put_between(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    """An operator of one or two values after another operator."""
    place = source.randrange(len(graph.node))
    made = source.choice(graph.node[place].output)
    name = f"{made}/between{source.randrange(10**6)}"
    if source.random() < 0.5:
        node = helper.make_node(source.choice(ELEMENTWISE), [made], [name])
    else:
        inputs = [made, _alike(seed, made, source)]
        source.shuffle(inputs)
        node = helper.make_node(source.choice(PAIRS), inputs, [name])
    graph.node.insert(place + 1, node)
    _use_instead(graph, place + 2, [made], [name], source)


def _borrow(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    """A node of any seed, with inputs of this one that are like its own, or new constants."""
    lender = source.choice(others)
    copy = onnx.NodeProto()
    copy.CopyFrom(source.choice(lender.model.graph.node))
    for i, name in enumerate(copy.input):
        value = lender.values.get(name)
        if not name or (name in seed.values and source.random() < 0.7):
            continue
        if value is not None and value.initializer and source.random() < 0.5:
            copy.input[i] = _constant(graph, value, source)
            continue
        fit = [
            n
            for n, v in seed.values.items()
            if value is not None and (v.dtype, len(v.shape)) == (value.dtype, len(value.shape))
        ]
        copy.input[i] = source.choice(fit or list(seed.values))
    copy.name = ""
    tag = f"/borrowed{source.randrange(10**6)}"
    for i, name in enumerate(copy.output):
        copy.output[i] = name and name + tag
    place = source.randrange(len(graph.node) + 1)
    graph.node.insert(place, copy)
    made = next((name for name in copy.output if name), "")
    _use_instead(graph, place + 1, [_alike(seed, copy.input[0], source)], [made], source)


def _constant(graph: Any, value: Value, source: random.Random) -> str:
    """A new constant like a value, or not quite."""
    shape = [size if isinstance(size, int) else 2 for size in value.shape]
    if shape and source.random() < 0.4:
        shape[source.randrange(len(shape))] += source.choice((-1, 1, 1))
    shape = [min(max(size, 0), 512) for size in shape]
    name = f"constant{source.randrange(10**9)}"
    kind = value.dtype if value.dtype in ("float32", "int32", "int64", "uint8", "int8") else "float32"
    low = 0 if kind == "uint8" else -2
    values = np.random.default_rng(source.randrange(10**6)).integers(low, 9, shape).astype(kind)
    graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


def _attribute(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    nodes = [node for node in graph.node if node.attribute]
    node = source.choice(nodes)
    attribute = source.choice(node.attribute)
    match attribute.type:
        case onnx.AttributeProto.INT:
            near = attribute.i + source.choice((-1, 1))
            attribute.i = source.choice((near, near, *NUMBERS))
        case onnx.AttributeProto.INTS:
            numbers = list(attribute.ints)
            source.shuffle(numbers)
            if numbers and source.random() < 0.3:
                numbers[0] = source.choice(NUMBERS)
            attribute.ints[:] = numbers
        case _:
            attribute.f = source.choice((0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 0.125))
    if source.random() < 0.1:
        node.attribute.remove(attribute)


def _epsilon(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    nodes = [a for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.FLOAT]
    if nodes:
        source.choice(nodes).f = source.choice((0.0, 1e-30, 1e30, -1.0, float("nan"), float("inf")))


def _operator(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    node = source.choice(graph.node)
    other = source.choice(source.choice(others).model.graph.node)
    node.op_type, node.domain = other.op_type, other.domain
    if source.random() < 0.5:
        del node.attribute[:]
        node.attribute.extend(other.attribute)


def _function(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    nodes = [node for node in graph.node if node.op_type in (*ELEMENTWISE, *PAIRS)]
    if nodes:
        node = source.choice(nodes)
        node.op_type = source.choice(PAIRS if node.op_type in PAIRS else ELEMENTWISE)


def _values(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    """Other numbers in a constant of the file."""
    tensors = [tensor for tensor in graph.initializer if not tensor.external_data]
    if not tensors:
        return
    tensor = source.choice(tensors)
    values = numpy_helper.to_array(tensor).copy()
    if values.dtype.name not in ("float32", "int32", "int64"):
        return
    flat = values.reshape(-1)
    if flat.size:
        place = source.randrange(flat.size)
        number = source.choice((*NUMBERS, int(flat[place]) + 1, int(flat[place]) - 1))
        flat[place] = np.array(number).astype(values.dtype)
    if source.random() < 0.2:
        values = np.concatenate([flat, flat[:1]]) if source.random() < 0.5 else flat[:-1]
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), tensor.name))


def _floats(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    floats = [t for t in graph.initializer if not t.external_data and t.data_type == 1]
    # A shape may have been made enormous by the mutation before.
    tensors = [t for t in floats if 0 <= math.prod(t.dims) <= MOST_VALUES]
    if tensors:
        tensor = source.choice(tensors)
        shape = tuple(tensor.dims)
        number = source.choice((0.0, -1.5, 1e30, float("nan"), float("-inf")))
        tensor.CopyFrom(numpy_helper.from_array(np.full(shape, number, np.float32), tensor.name))


def _dims(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    """Another shape of a constant, with as many bytes or not."""
    tensor = source.choice(graph.initializer)
    dims = list(tensor.dims)
    match source.randrange(5):
        case 0:
            source.shuffle(dims)
        case 1:
            dims = [*dims, 1] if source.random() < 0.5 else [1, *dims]
        case 2 if dims:
            place = source.randrange(len(dims))
            dims[place] = source.choice((dims[place] + 1, dims[place] - 1, dims[place] // 2, *NUMBERS))
        case 3 if len(dims) > 1:
            dims = [dims[0] * dims[1], *dims[2:]]
        case _ if dims and dims[0] % 2 == 0:
            dims = [dims[0] // 2, 2, *dims[1:]]
    before = int(np.prod(tensor.dims))
    tensor.dims[:] = [max(-(2**62), min(d, 2**62)) for d in dims]
    count = int(np.prod([float(d) for d in dims]))
    for entry in tensor.external_data:
        if entry.key == "length" and before and source.random() < 0.9:
            entry.value = str(max(0, int(entry.value) // before * count))
        if entry.key == "offset" and source.random() < 0.2:
            entry.value = str(max(0, int(entry.value) - source.choice((4, 64, 4096))))


def _dtype(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    source.choice(graph.initializer).data_type = source.choice(DTYPES)


def _move(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    """A node earlier or later."""
    place = source.randrange(len(graph.node))
    copy = onnx.NodeProto()
    copy.CopyFrom(graph.node[place])
    del graph.node[place]
    graph.node.insert(max(0, place + source.randrange(-3, 4)), copy)


def _told(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    """Another shape than a value has, told by the file."""
    if not graph.value_info:
        return
    value = source.choice(graph.value_info)
    if source.random() < 0.3:
        value.name = source.choice(list(seed.values))
    for dim in value.type.tensor_type.shape.dim:
        if source.random() < 0.5:
            dim.dim_value = source.choice(NUMBERS)


def _names(graph: Any, seed: Seed, others: list[Seed], source: random.Random) -> None:
    node = source.choice(graph.node)
    node.name = source.choice(("", "x", graph.node[0].name))


Change = Callable[[Any, Seed, list[Seed], random.Random], None]
HARMLESS: tuple[Change, ...] = (_epsilon, _function, _floats, _put_between, _duplicate, _names, _rewire)
ALL: tuple[Change, ...] = (
    _rewire, _rewire, _swap, _input_count, _delete, _duplicate, _put_between, _borrow, _borrow,
    _attribute, _operator, _function, _values, _values, _dims, _dims, _dtype, _move, _told,
)  # fmt: skip

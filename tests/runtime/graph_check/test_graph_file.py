"""The check of whole graph files: what of a file is refused, by its bytes."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs.contract import ModelConfig, Phase
from graphs.manifest import read_manifest
from runtime.graph_check import constants
from runtime.graph_check.graph_file import check_graph_file, infer_values
from runtime.graph_check.limits import GraphLimits
from runtime.graph_check.messages import BYTES
from runtime.graph_check.values import Value
from runtime.graph_check.wire_format import GraphFileError
from tests.runtime.graph_check.graph_bytes import (
    GRAPH,
    INITIALIZER,
    NODE,
    OPSET,
    TOY,
    VALUE_INFO,
    Field,
    attribute,
    changed,
    fields,
    message,
    node,
    replaced,
    tensor,
    told,
    weight,
    with_fields,
)

DATA = (TOY / "prefill.onnx").read_bytes()
MANIFEST = read_manifest(TOY)
SIZE = MANIFEST.weights.size
LIMITS = GraphLimits(MANIFEST.model, Phase.PREFILL, "float32", "weights.bin", SIZE)
NODES = sum(number == NODE for number, _ in fields(bytes(dict(fields(DATA))[GRAPH])))  # type: ignore[arg-type]


def refused(data: bytes, why: str, limits: GraphLimits = LIMITS) -> None:
    with pytest.raises(GraphFileError, match=why):
        check_graph_file(data, limits)


def with_node(*of: object, first: bool = False, **attributes: object) -> bytes:
    made = node(*of, **attributes)  # type: ignore[arg-type]
    return with_fields(DATA, (NODE, made), first=first)


# === Whole graphs ===


def test_whole_graphs(toy_bundle: Path) -> None:
    assert check_graph_file(DATA, LIMITS) > SIZE
    decode = replace(LIMITS, phase=Phase.DECODE)
    check_graph_file((toy_bundle / "decode.onnx").read_bytes(), decode)
    refused(DATA, r"an input is .*'sequence'.* not .*\('batch', 1\)", decode)


def test_what_is_told_of_values() -> None:
    values, _ = infer_values(DATA, LIMITS)
    assert str(values[b"logits"]) == "float32 [batch, 300]"
    assert str(values[b"MatMul:0"]) == "float32 [batch, 4, sequence, min(capacity)]"
    assert values[b"embeddings/token_embedding/embeddings"].initializer
    assert not values[b"logits"].constant


def test_a_graph_beside_another_one() -> None:
    model = fields(DATA)
    refused(message(*model, *[part for part in model if part[0] == GRAPH]), "has 2 of graph, not 1")
    refused(message(*[part for part in model if part[0] != GRAPH]), "has 0 of graph, not 1")


@given(st.integers(0, len(DATA) - 1), st.integers(0, 255))
def test_any_byte_is_an_error_or_harmless(position: int, value: int) -> None:
    altered = bytearray(DATA)
    altered[position] = value
    with contextlib.suppress(GraphFileError):
        check_graph_file(bytes(altered), LIMITS)


@given(st.integers(0, len(DATA) - 1))
def test_a_truncated_graph_is_an_error(size: int) -> None:
    refused(DATA[:size], ".")


@given(st.binary(max_size=300))
def test_noise_is_an_error(data: bytes) -> None:
    refused(data, ".")


# === Versions and the contract ===


def test_versions_of_operators() -> None:
    model = [part for part in fields(DATA) if part[0] != OPSET]
    standard = (OPSET, message((1, ""), (2, 18)))
    check_graph_file(message(*model, standard), LIMITS)
    for version in (17, 19, 0):
        other = (OPSET, message((1, ""), (2, version)))
        refused(message(*model, other), f"wants version {version} of the operators of '', not 18")
    other = (OPSET, message((1, "com.example"), (2, 1)))
    refused(message(*model, standard, other), "wants operators of 'com.example'; known are those of")
    refused(message(*model, standard, standard), "the version of a domain's operators twice")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"hidden_states", b"hidden_stateS", "an output is .'hidden_stateS'"),
        (b"past_lengths", b"past_lengthS", "an input is .'past_lengthS'"),
    ],
)
def test_names_of_the_contract(old: bytes, new: bytes, why: str) -> None:
    refused(replaced(DATA, old, new), f"breaks the graph contract: {why}")


def test_other_sizes_than_the_models() -> None:
    for name in ("vocabulary_size", "num_layers", "hidden_dim"):
        config = replace(LIMITS.config, **{name: 4})
        refused(DATA, "breaks the graph contract", replace(LIMITS, config=config))
    refused(DATA, "breaks the graph contract", replace(LIMITS, cache_dtype="float16"))


def test_outputs_are_what_they_are_told_to_be() -> None:
    """Not what an operator makes with another shape, nor what no operator makes."""
    bare = changed(DATA, lambda graph: graph.pop(_maker(graph, b"hidden_states")))
    refused(bare, "no operator makes 'hidden_states'")
    flat = (NODE, node("Identity", ["layer_norm_1/add_2:0"], ["hidden_states"]))
    refused(
        with_fields(bare, flat),
        r"'hidden_states' is computed as float32 \[batch\*sequence, 32\], not as float32 \[batch, seq",
    )
    whole = (NODE, node("Shape", ["logits"], ["hidden_states"]))
    refused(with_fields(bare, whole), "'hidden_states' is computed as int64")
    bare = changed(DATA, lambda graph: graph.pop(_maker(graph, b"present.0.key")))
    renamed = (INITIALIZER, tensor("present.0.key", "float32", [1], [0.0]))
    refused(with_fields(bare, renamed), ".")


def _maker(graph: list[Field], name: bytes) -> int:
    """Where the node is that makes a value."""
    (place,) = [
        i
        for i, (number, value) in enumerate(graph)
        if number == NODE and isinstance(value, bytes) and (2, name) in fields(value)
    ]
    return place


# === Nodes ===


def test_a_node_more() -> None:
    check_graph_file(with_node("Identity", ["logits"], ["x"]), LIMITS)


def test_names_are_there_once() -> None:
    why = "has several values of one name, or one without a name: "
    refused(with_node("Identity", ["logits"], ["logits"]), why + "'logits'")
    refused(with_node("Identity", ["logits"], ["input_ids"]), why + "'input_ids'")
    refused(with_node("Identity", ["logits"], ["Const_1:0"]), why + "'Const_1:0'")
    again = tensor("Const_1:0", "float32", [], [0.0])
    refused(with_fields(DATA, (INITIALIZER, again)), why + "'Const_1:0'")
    refused(with_fields(DATA, (INITIALIZER, tensor("logits", "float32", [], [0.0]))), why + "'logits'")
    refused(with_fields(DATA, (INITIALIZER, tensor("input_ids", "float32", [], [0.0]))), why)
    refused(with_fields(DATA, (INITIALIZER, tensor("", "float32", [], [0.0]))), why + "''")


def test_the_number_of_nodes() -> None:
    def more(count: int) -> bytes:
        made = [(NODE, node("Identity", ["logits"], [f"x{i}"])) for i in range(count)]
        return with_fields(DATA, *made)

    most = 60 * 2 + 160
    check_graph_file(more(most - NODES), LIMITS)
    refused(more(most - NODES + 1), f"has {most + 1} operators, at most {most} are allowed")


@pytest.mark.parametrize(
    ("kind", "domain", "named"),
    [
        ("If", "", "If"),
        ("Loop", "", "Loop"),
        ("ConstantOfShape", "", "ConstantOfShape"),
        ("Tile", "", "Tile"),
        ("Constant", "", "Constant"),
        ("PythonOp", "com.microsoft", "com.microsoft.PythonOp"),
        ("Add", "com.microsoft", "com.microsoft.Add"),
        ("QGemm", "", "QGemm"),
        ("Identity", "ai.onnx.ml", "ai.onnx.ml.Identity"),
        ("Identity", "ai.onnx", "ai.onnx.Identity"),
        ("identity", "", "identity"),
    ],
)
def test_operators_that_no_bundle_has(kind: str, domain: str, named: str) -> None:
    data = with_node(kind, ["logits"], ["x"], domain)
    refused(data, f"wants the operator '{named}', which no bundle has")


def test_values_are_made_before_they_are_read() -> None:
    data = with_node("Identity", ["logits"], ["x"], first=True)
    refused(data, "has an operator Identity of 'logits', which nothing before it makes")
    refused(with_node("Identity", ["x"], ["x"]), "of 'x', which nothing before it makes")
    refused(with_node("Identity", ["nothing"], ["x"]), "of 'nothing', which nothing before it makes")


@pytest.mark.parametrize(
    ("kind", "inputs", "domain"),
    [
        ("Add", ["logits"], ""),
        ("Add", ["logits"] * 3, ""),
        ("Add", ["logits", "logits", ""], ""),
        ("Add", ["logits", ""], ""),
        ("Identity", [], ""),
        ("Identity", [""], ""),
        ("Concat", ["logits"] * 5, ""),
        ("Reshape", ["logits", ""], ""),
        ("LayerNormalization", ["logits", "", "logits"], ""),
        ("MatMulIntegerToFloat", ["logits", "logits", "logits", "", "logits"], "com.microsoft"),
        ("SkipLayerNormalization", ["logits", "", "logits", "logits"], "com.microsoft"),
    ],
)
def test_numbers_of_inputs(kind: str, inputs: list[str], domain: str) -> None:
    data = with_node(kind, inputs, ["x"], domain)
    refused(data, f"has an operator {kind} with other inputs than it has in any bundle")


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "domain"),
    [
        ("Identity", ["logits"], [], ""),
        ("Identity", ["logits"], [""], ""),
        ("Identity", ["logits"], ["x", "y"], ""),
        ("LayerNormalization", ["logits", "logits"], ["x", "y"], ""),
        ("TopK", ["logits", "const_axes__114"], ["x"], ""),
        ("TopK", ["logits", "const_axes__114"], ["x", ""], ""),
        ("SkipLayerNormalization", ["logits"] * 3, ["x", "y", "", "z"], "com.microsoft"),
        ("SkipLayerNormalization", ["logits"] * 3, ["x", "", ""], "com.microsoft"),
        ("SkipLayerNormalization", ["logits"] * 3, ["x", "", "", ""], "com.microsoft"),
        ("SkipLayerNormalization", ["logits"] * 3, ["", "", "", "x"], "com.microsoft"),
    ],
)
def test_numbers_of_outputs(kind: str, inputs: list[str], outputs: list[str], domain: str) -> None:
    data = with_node(kind, inputs, outputs, domain)
    refused(data, f"has an operator {kind} with other outputs than it has in any bundle")


# === Attributes ===


def with_attributes(kind: str, *attributes: bytes) -> bytes:
    made = message((1, "logits"), (2, "x"), (4, kind), *[(5, each) for each in attributes])
    return with_fields(DATA, (NODE, made))


def test_attributes() -> None:
    check_graph_file(with_attributes("Cast", attribute("to", 1)), LIMITS)
    check_graph_file(with_attributes("Transpose", attribute("perm", [1, 0])), LIMITS)
    packed = message((1, "perm"), (8, b"\x01\x00"), (20, 7))
    check_graph_file(with_attributes("Transpose", packed), LIMITS)
    with_one = with_attributes("Cast", attribute("to", 1), attribute("saturate", 1))
    refused(with_one, "has an operator Cast with the attribute 'saturate', which no bundle has")
    twice = with_attributes("Cast", attribute("to", 1), attribute("to", 1))
    refused(twice, "has an operator Cast with the attribute 'to' twice")


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("Cast", attribute("to", 1.0)),
        ("Cast", attribute("to", 1, kind=1)),
        ("Cast", attribute("to", [1])),
        ("Cast", attribute("to", [1], kind=2)),
        ("Cast", message((1, "to"), (20, 2))),
        ("Cast", message((1, "to"), (3, 1))),
        ("Cast", message((1, "to"), (3, 1), (3, 1), (20, 2))),
        ("Cast", message((1, "to"), (3, b"\x01"), (20, 2))),
        ("Cast", message((1, "to"), (3, 1.0), (20, 2))),
        ("Cast", message((1, "to"), (3, 1), (2, 1.0), (20, 2))),
        ("Transpose", attribute("perm", 1)),
        ("Transpose", attribute("perm", [1, 0], kind=2)),
    ],
)
def test_attributes_of_another_kind(kind: str, data: bytes) -> None:
    refused(with_attributes(kind, data), f"has an operator {kind} whose .* is of another kind")


def test_negative_and_huge_attributes() -> None:
    for to in (-1, 2**40, 2**62):
        refused(with_attributes("Cast", attribute("to", to)), "no bundle casts to that")
    for axis in (-3, 2, 2**40):
        data = with_attributes("Concat", attribute("axis", axis))
        refused(data, f"there is no axis {axis}")
    refused(with_attributes("Shape", attribute("start", -1)), "there is no such axis")


def test_other_fields_of_an_attribute() -> None:
    refused(with_attributes("Cast", message((1, "to"), (6, b""), (20, 5))), "field 6 of a message")
    refused(with_attributes("Cast", message((1, "to"), (7, 1.0), (20, 6))), "field 7 of a message")


# === Constants ===

EIGHT = weight("c", "float32", [2], 0, 8)  # bytes


def with_constant(data: bytes) -> bytes:
    return with_fields(DATA, (INITIALIZER, data))


def test_constants() -> None:
    for constant in (
        tensor("c", "int64", [2], [1, 2]),
        tensor("c", "float32", [], [1.0]),
        tensor("c", "uint8", [2, 2], [1, 2, 3, 4]),
        message((1, 2), (2, 7), (7, 1), (7, 2), (8, "c")),
        message((1, 2), (2, 7), (7, b"\x01\x02"), (8, "c")),
        message((1, 2), (2, 6), (5, 1), (5, 2**64 - 1), (8, "c")),
        message((1, 2), (2, 1), (4, 1.0), (4, 2.0), (8, "c")),
        message((1, 2), (2, 1), (4, bytes(8)), (8, "c")),
        message((1, 2), (2, 10), (5, 1), (5, 2), (8, "c")),
        weight("c", "float32", [2, 4], SIZE - 32, 32),
    ):
        check_graph_file(with_constant(constant), LIMITS)


@pytest.mark.parametrize(
    ("constant", "why"),
    [
        (tensor("c", "int64", [3], [1, 2]), r"has 16 bytes of the tensor 'c' of shape \[3\], not 24"),
        (tensor("c", "int64", [1], [1, 2]), r"has 16 bytes of the tensor 'c' of shape \[1\], not 8"),
        (tensor("c", "uint8", [3], [1, 2]), r"has 2 bytes of the tensor 'c' of shape \[3\], not 3"),
        (tensor("c", "uint8", [1], [1, 2]), r"has 2 bytes of the tensor 'c' of shape \[1\], not 1"),
        (tensor("c", "float32", [2], bytes(9)), "has 9 bytes"),
        (tensor("c", "int64", [2**40, 2**40], []), "has 0 bytes"),
        (tensor("c", "int64", [-1], [1]), r"has the tensor 'c' of shape \[-1\]"),
        (tensor("c", "int64", [0], []), r"has the tensor 'c' of shape \[0\]"),
        (tensor("c", "int64", [1] * 4, [1]), "has the tensor 'c' of shape"),
        (message((1, 2), (2, 7), (7, 1), (8, "c")), "has 8 bytes"),
        (message((1, 2), (2, 1), (4, 1.0), (8, "c")), "has 4 bytes"),
        (message((1, 2), (2, 10), (5, 1), (8, "c")), "has 2 bytes"),
        (message((1, 1), (2, 8), (8, "c")), "of a dtype that bundles do not have: 8"),
        (message((1, 1), (2, 11), (8, "c")), "of a dtype that bundles do not have: 11"),
        (message((1, 1), (2, 7), (5, 1), (8, "c")), "has numbers of another dtype than its own"),
        (message((1, 1), (2, 6), (7, 1), (8, "c")), "has numbers of another dtype than its own"),
        (message((1, 1), (2, 10), (4, 1.0), (8, "c")), "has numbers of another dtype than its own"),
        (message((1, 1), (2, 6), (5, 2**31), (8, "c")), "has numbers of more than 32 bits"),
        (message((1, 1), (2, 6), (5, 2**32 + 1), (8, "c")), "has numbers of more than 32 bits"),
        (message((1, 2), (2, 1), (4, bytes(7)), (8, "c")), "it ends within a number"),
        (message((1, 1), (2, 7), (7, 1), (8, "c"), (9, bytes(8))), "'c' in several places"),
        (message((1, 1), (2, 7), (8, "c"), (9, bytes(8)), (9, bytes(8))), "'c' in several places"),
        (message((1, 1), (2, 7), (8, "c"), (9, 8)), "'c' has no bytes"),
        (message((1, 1), (2, 7), (8, "c"), (13, b""), (9, bytes(8))), "'c' in several places"),
        (weight("c", "int64", [1], 0, 8) + message((9, bytes(8))), "'c' in several places"),
        (message((1, 1), (2, 7), (8, "c"), (10, bytes(8))), "field 10 of a message"),
    ],
)
def test_constants_that_are_refused(constant: bytes, why: str) -> None:
    refused(with_constant(constant), why)


@pytest.mark.parametrize(
    ("constant", "why"),
    [
        (weight("c", "float32", [2], 0, 4), "has 4 bytes of the weight 'c', not 8"),
        (weight("c", "float32", [2], 0, 12), "has 12 bytes of the weight 'c', not 8"),
        (weight("c", "float32", [2], SIZE - 7, 8), f"byte {SIZE + 1} of weights.bin, which has {SIZE}"),
        (weight("c", "float32", [2], -8, 8), "which are no numbers"),
        (weight("c", "float32", [2], 10**19, 8), "which are no numbers"),
        (
            weight("c", "float32", [2], 0, 8).replace(b"weights.bin", b"weights_bin"),
            "only 'weights.bin'",
        ),
        (
            weight("c", "float32", [2], 0, 8).replace(b"offset", b"offseT"),
            "offset and length are known",
        ),
        (
            weight("c", "float32", [2], 0, 8) + message((13, message((1, "offset"), (2, "0")))),
            "are known",
        ),
    ],
)
def test_weights_that_are_refused(constant: bytes, why: str) -> None:
    refused(with_constant(constant), why)


def test_bytes_of_all_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_constant(tensor("c", "uint8", [1000], bytes(1000)))
    monkeypatch.setattr(constants, "MAX_INLINE_BYTES", 0)
    with pytest.raises(GraphFileError, match="bytes of tensors, at most 0 are allowed") as raised:
        check_graph_file(data, LIMITS)
    inline = int(str(raised.value).split()[1])
    monkeypatch.setattr(constants, "MAX_INLINE_BYTES", inline)
    check_graph_file(data, LIMITS)
    assert 1000 < inline < 2000
    monkeypatch.setattr(constants, "MAX_INLINE_BYTES", inline - 1)
    refused(data, f"holds {inline} bytes of tensors, at most {inline - 1} are allowed")
    monkeypatch.undo()
    assert constants.MAX_INLINE_BYTES == 4 * 1024**2


def _bytes(value: Value) -> int:
    return prod(size for size in value.shape if isinstance(size, int)) * BYTES[value.dtype]


def test_weights_are_read_twice_at_most() -> None:
    """And a megabyte, for small models."""
    size = 4 * (SIZE // 4)

    def reads(count: int) -> bytes:
        made = [(INITIALIZER, weight(f"c{i}", "float32", [SIZE // 4], 0, size)) for i in range(count)]
        return with_fields(DATA, *made)

    own = sum(_bytes(value) for value in infer_values(DATA, LIMITS)[0].values() if value.initializer)
    fitting = (2 * SIZE + 1024**2 - own) // size
    check_graph_file(reads(fitting), LIMITS)
    refused(reads(fitting + 1), "each of them several times")


# === What loading takes ===


def test_what_is_computed_of_constants_is_bounded() -> None:
    shape = tensor("shape", "int64", [3], [1000, 1000, 200])
    expand = (NODE, node("Expand", ["Const_1:0", "shape"], ["x"]))
    data = with_fields(DATA, (INITIALIZER, shape), expand)
    refused(data, r"by Expand of .*: more is computed of constants alone than any bundle does")
    little = tensor("shape", "int64", [3], [10, 10, 10])
    check_graph_file(with_fields(DATA, (INITIALIZER, little), expand), LIMITS)
    many = [(NODE, node("Expand", ["Const_1:0", "shape"], [f"x{i}"])) for i in range(100)]
    big = tensor("shape", "int64", [3], [20, 20, 20])
    refused(with_fields(DATA, (INITIALIZER, big), *many), "more is computed of constants alone")


def test_axes_are_bounded() -> None:
    axes = tensor("axes", "int64", [3], [0, 1, 2])
    more = [(NODE, node("Unsqueeze", ["logits", "axes"], ["x"]))]
    refused(with_fields(DATA, (INITIALIZER, axes), *more), "more axes than any value")
    fixed = [(NODE, node("Unsqueeze", ["shape", "axes"], ["x"]))]
    refused(with_fields(DATA, (INITIALIZER, axes), (INITIALIZER, tensor("shape", "int64", [1, 1], [2])),
                        *fixed), "more axes than any value")  # fmt: skip


def test_products_of_constants_are_bounded() -> None:
    """1,300 of them took a minute and gigabytes to load."""
    config = ModelConfig(300, 100, 4, 32, 64, 64)
    assert replace(LIMITS, config=config).most_nodes > 1300
    a = weight("a", "float32", [150, 150], 0, 90_000)
    names = ["a", *(f"x{i}" for i in range(40))]
    chain = [(NODE, node("MatMul", [x, "a"], [y])) for x, y in pairwise(names)]
    refused(with_fields(DATA, (INITIALIZER, a), *chain), "more (is computed|weights are multiplied)")


def test_weights_are_packed_twice_at_most() -> None:
    a = weight("a", "float32", [32, 1400], 0, 4 * 32 * 1400)
    hidden = "layer_norm_1/add_2:0"

    def products(count: int) -> bytes:
        made = [(NODE, node("MatMul", [hidden, "small"], [f"x{i}"])) for i in range(count)]
        small = weight("small", "float32", [32, 1000], 0, 128_000)
        return with_fields(DATA, (INITIALIZER, a), (INITIALIZER, small), *made)

    check_graph_file(products(5), LIMITS)
    refused(products(20), "more weights are multiplied with than the weights file has")


def test_values_are_no_larger_than_the_models() -> None:
    for inputs, why in (
        (["logits", "wide"], r"it is float32 \[batch, 2048, 300\], more than a model"),
        (["hidden_states", "wide"], "the shapes do not agree|more than a model"),
    ):
        wide = weight("wide", "float32", [2048, 1], 0, 8192)
        unsqueezed = (NODE, node("Unsqueeze", [inputs[0], "const_ends__40"], ["u"]))
        data = with_fields(
            DATA, (INITIALIZER, wide), unsqueezed, (NODE, node("Mul", ["u", "wide"], ["x"]))
        )
        refused(data, why)


def test_squares_of_sizes() -> None:
    axes = [(INITIALIZER, tensor(f"axis{i}", "int64", [1], [i])) for i in (0, 2)]
    nodes = [
        (NODE, node("Transpose", ["add:0"], ["transposed"], perm=[1, 0])),
        (NODE, node("Unsqueeze", ["add:0", "axis2"], ["u"])),
        (NODE, node("Unsqueeze", ["transposed", "axis0"], ["v"])),
        (NODE, node("Mul", ["u", "v"], ["x"])),
    ]
    why = r"it is int32 \[batch, sequence, batch\], more than a model of these sizes computes"
    refused(with_fields(DATA, *axes, *nodes), why)


# === What the file tells of values ===


def with_told(*values: bytes) -> bytes:
    bare = changed(DATA, lambda graph: graph.__setitem__(
        slice(None), [part for part in graph if part[0] != VALUE_INFO]))  # fmt: skip
    return with_fields(bare, *[(VALUE_INFO, value) for value in values])


def test_what_is_told_truly() -> None:
    check_graph_file(with_told(), LIMITS)
    check_graph_file(
        with_told(
            told("MatMul:0", "float32", ["batch", 4, "sequence", "any"]),
            told("add_3:0", "float32", ["", 4, "", "any"]),
            told("nothing", "float32", [5]),
            message((1, "add:0")),
            message((1, "add:0"), (2, message((1, message((1, 6)))))),
        ),
        LIMITS,
    )


@pytest.mark.parametrize(
    "value",
    [
        told("MatMul:0", "float32", ["batch", 5, "sequence", "any"]),
        told("MatMul:0", "float32", [1, 4, "sequence", "any"]),
        told("MatMul:0", "float32", ["sequence", 4, "batch", "any"]),
        told("MatMul:0", "float32", ["batch", 4, "sequence", "capacity"]),
        told("MatMul:0", "float32", ["batch", 4, "sequence", "sequence"]),
        told("MatMul:0", "float32", ["x", 4, "x", "any"]),
        told("MatMul:0", "float32", ["batch", 0, "sequence", "any"]),
        told("MatMul:0", "float32", ["batch", -1, "sequence", "any"]),
        told("MatMul:0", "float32", ["batch", 4, "sequence"]),
        told("MatMul:0", "float32", []),
        told("MatMul:0", "float16", ["batch", 4, "sequence", "any"]),
        told("Const_1:0", "float32", [1]),
        message((1, "add:0"), (2, message((1, message((1, 99)))))),
    ],
)
def test_what_is_not_true(value: bytes) -> None:
    refused(with_told(value), "tells another dtype or shape of .* than it has: ")


def test_a_name_means_one_size_everywhere() -> None:
    first = told("MatMul:0", "float32", ["batch", 4, "x", "y"])
    refused(with_told(first, told("add:0", "int32", ["x", "sequence"])), "shape of 'add:0'")
    check_graph_file(with_told(first, told("add:0", "int32", ["batch", "x"])), LIMITS)


# === What ONNX Runtime folds: the issue's own ===


def constant(name: str, dtype: str, value: float) -> tuple[int, bytes]:
    return INITIALIZER, tensor(name, dtype, [], [value])


def test_ranges_of_constants() -> None:
    zero, one = constant("zero", "int64", 0), constant("one", "int64", 1)
    for limit, why in ((2**40, "more is computed|cannot be told"), (-5, "cannot be told")):
        data = with_fields(
            DATA,
            zero,
            one,
            constant("n", "int64", limit),
            (NODE, node("Range", ["zero", "n", "one"], ["x"])),
        )
        refused(data, f"{why}|count whole numbers")
    floats = [constant(name, "float32", value) for name, value in (("a", 0.0), ("b", 1e9), ("c", 1.0))]
    refused(
        with_fields(DATA, *floats, (NODE, node("Range", ["a", "b", "c"], ["x"]))), "count whole numbers"
    )
    cast = (NODE, node("Cast", ["b"], ["n"], to=7))
    ranged = (NODE, node("Range", ["zero", "n", "one"], ["x"]))
    refused(with_fields(DATA, *floats, zero, one, cast, ranged), "more is computed of constants alone")


def test_sizes_that_are_products() -> None:
    thousand = (INITIALIZER, tensor("k", "int64", [1], [1000]))
    products = [
        (NODE, node("Mul", ["k", "k"], ["k2"])),
        (NODE, node("Mul", ["k2", "k"], ["k3"])),
        (NODE, node("Expand", ["Const_1:0", "k3"], ["x"])),
    ]
    refused(with_fields(DATA, thousand, *products), "more is computed of constants alone")
    # Of an input: as large.
    shape = (NODE, node("Shape", ["logits"], ["s"], start=1))
    square = (NODE, node("Mul", ["s", "s"], ["s2"]))
    cube = (NODE, node("Mul", ["s2", "s"], ["s3"]))
    expand = (NODE, node("Expand", ["Const_1:0", "s3"], ["x"]))
    refused(with_fields(DATA, shape, square, cube, expand), "more is computed of constants alone")

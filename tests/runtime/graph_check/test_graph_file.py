"""The check of whole graph files: what of a file is refused, by its bytes."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs.contract import Phase
from runtime.graph_check.graph_file import check_graph_file, infer_values
from runtime.graph_check.wire_format import GraphFileError
from tests.runtime.graph_check.graph_bytes import (
    GRAPH,
    INITIALIZER,
    NODE,
    OPSET,
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
    with_fields,
)
from tests.runtime.graph_check.toy_graph import DATA, LIMITS, NODES, SIZE, refused


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
    assert str(values[b"logits"]) == "float32 [outputs, 300]"
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


def test_names_of_nodes_are_there_once() -> None:
    def named(*names: str) -> bytes:
        made = [
            (NODE, node("Identity", ["logits"], [f"x{i}"]) + message((3, name)))
            for i, name in enumerate(names)
        ]
        return with_fields(DATA, *made)

    check_graph_file(named("a", "b", "", ""), LIMITS)
    refused(named("a", "a"), "makes 'x1' by Identity of .*: another operator has its name")


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

"""The look at graph files: whole ones pass; the hostile kinds of `tests.faults` do not."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs.contract import Phase
from graphs.manifest import read_manifest
from runtime.graph_check.graph_file import check_graph_file
from runtime.graph_check.limits import GraphLimits
from runtime.graph_check.wire_format import GraphFileError, integers, number, read_message, text

NAMES = {1: "a", 2: "b", 300: "c"}
DATA = (Path(__file__).parents[2] / "data" / "toy_bundle" / "prefill.onnx").read_bytes()


@pytest.fixture(scope="module")
def limits(toy_bundle: Path) -> GraphLimits:
    manifest = read_manifest(toy_bundle)
    weights = manifest.weights
    return GraphLimits(manifest.model, Phase.PREFILL, "float32", weights.name, weights.size)


# === The wire format ===


def test_fields_by_name() -> None:
    data = b"\x08\x96\x01\x12\x02hi\x08\x05\xe2\x12\x01x\x15\x00\x00\x80\x3f"
    assert read_message(data, NAMES) == {"a": [150, 5], "b": [b"hi", 1.0], "c": [b"x"]}
    assert read_message(b"", NAMES) == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x18\x01", "holds what no exported graph does: field 3 of a message"),
        (b"\x08", "it ends within a field"),
        (b"\x12\x05abc", "it ends within a field"),
        (b"\x15\x00", "it ends within a field"),
        (b"\x08" + b"\xff" * 11, "a number has more than 64 bits"),
        (b"\x0b", "a field has the wire type 3"),
        (b"\x09" + bytes(8), "a field has the wire type 1"),
    ],
)
def test_damaged_messages(data: bytes, message: str) -> None:
    with pytest.raises(GraphFileError, match=message):
        read_message(data, NAMES)


def test_values_of_fields() -> None:
    message = {"name": [b"x", "é".encode()], "count": [7], "bad": [b"\xff"], "float": [1.5]}
    assert text(message, "name") == "é"  # the last one counts
    assert (text(message, "missing"), number(message, "missing")) == ("", 0)
    assert number(message, "count") == 7
    assert integers([5, 2**64 - 1, b"\x01\xac\x02"]) == [5, -1, 1, 300]
    for wrong in (
        lambda: text(message, "count"),
        lambda: text(message, "bad"),
        lambda: number(message, "name"),
        lambda: number(message, "float"),
        lambda: integers([1.5]),
        lambda: integers([b"\xff"]),
    ):
        with pytest.raises(GraphFileError, match="is damaged"):
            wrong()


# === Graphs ===


def test_whole_graphs(toy_bundle: Path, limits: GraphLimits) -> None:
    check_graph_file(DATA, limits)
    decode = GraphLimits(limits.config, Phase.DECODE, "float32", "weights.bin", limits.weights_size)
    check_graph_file((toy_bundle / "decode.onnx").read_bytes(), decode)
    with pytest.raises(GraphFileError, match=r"an input is .*'sequence'.* not .*\('batch', 1\)"):
        check_graph_file(DATA, decode)


def test_the_weights_end_where_the_file_does(limits: GraphLimits) -> None:
    short = GraphLimits(limits.config, limits.phase, "float32", "weights.bin", limits.weights_size - 1)
    with pytest.raises(GraphFileError, match=r"up to byte 184448 of weights\.bin, which has 184447"):
        check_graph_file(DATA, short)


@given(st.integers(0, len(DATA) - 1), st.integers(0, 255))
def test_any_byte_is_an_error_or_harmless(limits: GraphLimits, position: int, value: int) -> None:
    altered = bytearray(DATA)
    altered[position] = value
    with contextlib.suppress(GraphFileError):
        check_graph_file(bytes(altered), limits)


@given(st.integers(0, len(DATA) - 1))
def test_a_truncated_graph_is_an_error(limits: GraphLimits, size: int) -> None:
    with pytest.raises(GraphFileError):
        check_graph_file(DATA[:size], limits)


@given(st.binary(max_size=300))
def test_noise_is_an_error(limits: GraphLimits, data: bytes) -> None:
    with pytest.raises(GraphFileError):
        check_graph_file(data, limits)

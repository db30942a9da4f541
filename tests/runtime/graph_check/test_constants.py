"""The constants of graph files, by their bytes."""

from __future__ import annotations

import pytest

from runtime.graph_check import constants
from runtime.graph_check.graph_file import check_graph_file
from runtime.graph_check.wire_format import GraphFileError
from tests.runtime.graph_check.graph_bytes import (
    INITIALIZER,
    message,
    tensor,
    weight,
    with_fields,
)
from tests.runtime.graph_check.toy_graph import DATA, LIMITS, SIZE, refused

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

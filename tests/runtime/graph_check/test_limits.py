"""How much a graph may compute, and what loading it may take; what ONNX Runtime would fold."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import prod

import pytest

from graphs.contract import ModelConfig
from runtime.graph_check.graph_file import check_graph_file, infer_values
from runtime.graph_check.messages import BYTES
from runtime.graph_check.sizes import BATCH, CAPACITY, OUTPUTS, SEQUENCE, Dim, symbol
from runtime.graph_check.values import Value
from tests.runtime.graph_check.graph_bytes import (
    INITIALIZER,
    NODE,
    node,
    tensor,
    weight,
    with_fields,
)
from tests.runtime.graph_check.toy_graph import DATA, LIMITS, SIZE, refused


@pytest.mark.parametrize(
    ("sizes", "most"),
    [
        ((), 5000),
        ((OUTPUTS,), 5000),
        ((BATCH,), 2048),
        ((SEQUENCE,), 2048),
        ((BATCH, SEQUENCE), 2048),
        ((CAPACITY,), 512),
        ((BATCH, CAPACITY), 512),
        ((SEQUENCE, CAPACITY), 4),
        ((BATCH, SEQUENCE, CAPACITY), 4),
    ],
)
def test_the_largest_values(sizes: tuple[Dim, ...], most: int) -> None:
    limits = replace(LIMITS, config=ModelConfig(5000, 2, 4, 512, 2048, 64))
    assert limits.problem((*sizes, most), fixed=False) is None
    assert limits.problem((*sizes, most + 1), fixed=False) is not None
    assert limits.problem((*sizes, most + 1), fixed=True) is None


def test_the_smallest_bound_is_for_small_models() -> None:
    limits = replace(LIMITS, config=ModelConfig(300, 1, 4, 32, 64, 64))
    assert limits.problem((BATCH, SEQUENCE, 1024), fixed=False) is None
    assert limits.problem((BATCH, SEQUENCE, 1025), fixed=False) is not None


def test_values_that_no_model_has() -> None:
    for shape in (
        (BATCH, BATCH),
        (SEQUENCE, SEQUENCE),
        (BATCH + 1,),
        (BATCH - 1, 4),
        (0,),
        (BATCH, 0),
        (OUTPUTS, OUTPUTS),
        (OUTPUTS, BATCH),
        (OUTPUTS, SEQUENCE),
        (OUTPUTS, CAPACITY),
    ):
        assert LIMITS.problem(shape, fixed=False) is not None
    used = symbol("used", CAPACITY)
    assert LIMITS.problem((BATCH, 4, SEQUENCE, used), fixed=False) is None
    assert LIMITS.problem((CAPACITY, used), fixed=False) is not None
    for fixed in (False, True):
        assert LIMITS.problem((1, 1, 1, 1), fixed=fixed) is None
        assert LIMITS.problem((1, 1, 1, 1, 1), fixed=fixed) is not None


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
    a = weight("a", "float32", [32, 1100], 0, 4 * 32 * 1100)
    hidden = "layer_norm_1/add_2:0"

    def products(count: int) -> bytes:
        made = [(NODE, node("MatMul", [hidden, "small"], [f"x{i}"])) for i in range(count)]
        small = weight("small", "float32", [32, 1000], 0, 128_000)
        return with_fields(DATA, (INITIALIZER, a), (INITIALIZER, small), *made)

    check_graph_file(products(5), LIMITS)
    refused(products(20), "more weights are multiplied with than the weights file has")


def test_values_are_no_larger_than_the_models() -> None:
    for inputs, why in (
        (["logits", "wide"], r"it is float32 \[outputs, 2048, 300\], more than a model"),
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

"""What quantized weights are stored as: names, dtypes, shapes, and which models take which."""

from __future__ import annotations

from dataclasses import replace

import pytest

from graphs.contract import ModelConfig, Phase
from graphs.quantization import (
    FLOAT,
    BlockMatrix,
    Int8Lookup,
    Int8Matrix,
    Scheme,
    StoredTensor,
    block_size,
    half_weight,
    head_factors,
    is_layer_matrix,
    is_position_table,
    is_token_table,
    phase_schemes,
    takes_blocks,
)

CONFIG = ModelConfig(300, 2, 4, 32, 64, 48)
TABLE = "embeddings/token_embedding/embeddings"


def test_schemes_of_the_phases() -> None:
    int8, int4 = Scheme("int8", "int8"), Scheme("int4", "int4")
    for precision, scheme in (("fp32", FLOAT), ("int8", int8), ("int4", int4)):
        assert phase_schemes(precision) == {Phase.PREFILL: scheme, Phase.DECODE: scheme}
        assert scheme.quantized is (precision != "fp32")
    # The tables are the same for both: only the layers are there twice.
    mixed = phase_schemes("int4", "int8")
    assert mixed == {Phase.PREFILL: Scheme("int8", "int4"), Phase.DECODE: int4}
    assert all(scheme.quantized for scheme in mixed.values())


def test_a_view_is_other_dimensions_of_the_same_bytes() -> None:
    tensor = StoredTensor("codes", "uint8", (6, 2, 16))
    assert tensor.view_of is None
    assert tensor.view("rows", (6, 32)) == StoredTensor("rows", "uint8", (6, 32), view_of="codes")


def test_int8_matrices() -> None:
    kernel = Int8Matrix.of("k", (32, 64))
    assert kernel.codes == StoredTensor("k.int8", "int8", (32, 64))
    assert kernel.scales == StoredTensor("k.int8.scales", "float32", (64,))
    assert kernel.input_scale == StoredTensor("k.input_scale", "float32", ())
    assert kernel.input_zero_point == StoredTensor("k.input_zero_point", "uint8", ())
    head = Int8Matrix.of("t", (300, 32), outputs_axis=0)
    assert (head.codes.shape, head.scales.shape) == ((300, 32), (300,))


def test_int8_lookups() -> None:
    tied = Int8Lookup.of(TABLE, CONFIG)
    head = Int8Matrix.of(TABLE, (300, 32), outputs_axis=0)
    assert (tied.codes.view_of, tied.scales.view_of) == (head.codes.name, head.scales.name)
    assert (tied.codes.shape, tied.scales.shape) == ((300, 32), (300, 1))
    assert tied.factors == StoredTensor(f"{TABLE}.factors", "float32", (32,))  # the head's
    own = Int8Lookup.of(TABLE, replace(CONFIG, tied_head=False))
    assert own == Int8Lookup(
        replace(tied.codes, view_of=None), replace(tied.scales, view_of=None), None
    )
    narrow = Int8Lookup.of(TABLE, replace(CONFIG, embedding_dim=16))
    assert narrow.codes.shape == (300, 16)
    assert narrow.factors == head_factors(TABLE, 16)


@pytest.mark.parametrize(
    ("inputs", "block", "codes", "zero_points"),
    [
        (64, 32, (7, 2, 16), (7, 1)),
        (96, 32, (7, 3, 16), (7, 2)),
        (128, 128, (7, 1, 64), (7, 1)),
        (2048, 128, (7, 16, 64), (7, 8)),
    ],
)
def test_int4_matrices(
    inputs: int, block: int, codes: tuple[int, ...], zero_points: tuple[int, ...]
) -> None:
    matrix = BlockMatrix.of("k", 7, inputs, block)
    assert matrix.codes == StoredTensor("k.int4", "uint8", codes)
    assert matrix.scales == StoredTensor("k.int4.scales", "float32", codes[:2])
    assert matrix.zero_points == StoredTensor("k.int4.zero_points", "uint8", zero_points)
    assert matrix.rows() == matrix.codes.view("k.int4.rows", (7, inputs // 2))


@pytest.mark.parametrize(
    ("hidden", "intermediate", "embedding", "block"),
    [
        (768, 3072, None, 128),
        (1024, 4096, 512, 128),
        (64, 256, None, 64),
        (32, 64, None, 32),
        (128, 128, 96, 32),
        (128, 80, None, 16),
    ],
)
def test_the_block_size_is_the_largest_that_divides_all_widths(
    hidden: int, intermediate: int, embedding: int | None, block: int
) -> None:
    config = ModelConfig(300, 2, 4, hidden, intermediate, 48, embedding_dim=embedding)
    assert block_size(config) == block
    assert takes_blocks(config)


@pytest.mark.parametrize("widths", [(24, 64, None), (32, 72, None), (32, 64, 8)])
def test_widths_that_no_block_divides(widths: tuple[int, int, int | None]) -> None:
    hidden, intermediate, embedding = widths
    config = ModelConfig(300, 2, 4, hidden, intermediate, 48, embedding_dim=embedding)
    assert not takes_blocks(config)
    named = f"{hidden}, {intermediate}, {embedding or hidden}"
    message = f"blocks need widths that 16 divides, and this model has widths of {named}; export it "
    with pytest.raises(ValueError, match=message + "for target cpu as int8, or as floats$"):
        block_size(config)


def test_kinds_of_weights_by_their_names() -> None:
    kinds = {
        "transformer_layer_0/attention/qkv/kernel": "matrix",
        "transformer_layer_11/output/kernel": "matrix",
        "transformer_layer_0/output/bias": None,
        "transformer_layer_0/attention_norm/gamma": None,
        "embeddings/project_in/kernel": None,
        "project_out/kernel": None,
        "embeddings/position_embedding/embeddings": "positions",
        "embeddings/token_embedding/embeddings": "tokens",
        "head/embeddings": None,
        "layer_norm/gamma": None,
    }
    for name, kind in kinds.items():
        assert is_layer_matrix(name) is (kind == "matrix")
        assert is_position_table(name) is (kind == "positions")
        assert is_token_table(name) is (kind == "tokens")


def test_positions_in_float16() -> None:
    tensor = half_weight("p", (48, 32))
    assert tensor == StoredTensor("p.fp16", "float16", (48, 32))

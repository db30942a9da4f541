"""int4 codes in blocks, against ONNX Runtime's own operators."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from exporter.quantization import int4
from exporter.quantization.int4 import quantize_blocks

LAYOUTS = [(bs, symmetric) for bs in (16, 32, 64, 128) for symmetric in (True, False)]


def draw(rows, inputs, seed=0):
    return np.random.default_rng(seed).normal(0.005, 0.02, (rows, inputs)).astype(np.float32)


def unpack(packed):
    """The halves of each byte as neighbours of the last axis."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def decode(found, inputs):
    """The matrix that codes stand for, by the layout's definition."""
    codes = unpack(found.codes).astype(np.float32)
    zeros = np.full(found.scales.shape, 8.0, np.float32)
    if found.zero_points is not None:
        zeros = unpack(found.zero_points)[:, : zeros.shape[1]].astype(np.float32)
    return ((codes - zeros[..., None]) * found.scales[..., None]).reshape(len(codes), -1)[:, :inputs]


def run_operator(op_type, found, feed, output_shape, **attributes):
    """What ONNX Runtime's operator computes from codes, scales and zero points."""
    tensors = {"codes": found.codes, "scales": found.scales, "zeros": found.zero_points}
    if op_type == "GatherBlockQuantized":
        tensors["codes"] = found.codes.reshape(len(found.codes), -1)
    tensors = {name: value for name, value in tensors.items() if value is not None}
    ((name, value),) = feed.items()
    order = [name, *tensors] if op_type == "MatMulNBits" else ["codes", name, *list(tensors)[1:]]
    node = helper.make_node(op_type, order, ["y"], domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)],
        [onnx.numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)[0]


@pytest.mark.parametrize("inputs", [256, 200, 130])  # whole blocks, a part of one, an odd number
@pytest.mark.parametrize(("block_size", "symmetric"), LAYOUTS)
def test_matmul_nbits_reads_the_codes(block_size, symmetric, inputs):
    found = quantize_blocks(draw(24, inputs), block_size, symmetric=symmetric)
    x = np.random.default_rng(1).normal(0, 1, (3, inputs)).astype(np.float32)
    y = run_operator(
        "MatMulNBits", found, {"x": x}, [3, 24], K=inputs, N=24, bits=4, block_size=block_size
    )
    np.testing.assert_allclose(y, x @ decode(found, inputs).T, atol=2e-6)


@pytest.mark.parametrize(("block_size", "symmetric"), LAYOUTS)
def test_gather_block_quantized_reads_the_codes(block_size, symmetric):
    table = draw(40, 256)
    found = quantize_blocks(table, block_size, symmetric=symmetric)
    ids = np.array([[3, 39, 0]])
    y = run_operator(
        "GatherBlockQuantized",
        found,
        {"ids": ids},
        [1, 3, 256],
        bits=4,
        block_size=block_size,
        gather_axis=0,
        quantize_axis=1,
    )
    np.testing.assert_array_equal(y, decode(found, 256)[ids])


def test_layout():
    found = quantize_blocks(draw(5, 96), 32)
    assert (found.codes.dtype, found.codes.shape) == (np.uint8, (5, 3, 16))
    assert (found.scales.dtype, found.scales.shape) == (np.float32, (5, 3))
    assert (found.zero_points.dtype, found.zero_points.shape) == (np.uint8, (5, 2))
    assert quantize_blocks(draw(5, 96), 32, symmetric=True).zero_points is None


@pytest.mark.parametrize("symmetric", [True, False])
def test_values_on_the_grid_come_back(symmetric):
    generator = np.random.default_rng(2)
    codes = generator.integers(0, 16, (6, 4, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    zeros = np.full((6, 4, 1), 8) if symmetric else generator.integers(2, 14, (6, 4, 1))
    steps = np.float32(2.0) ** generator.integers(-8, 0, (6, 4, 1))
    rows = ((codes - zeros) * steps).astype(np.float32).reshape(6, 128)
    found = quantize_blocks(rows, 32, symmetric=symmetric)
    np.testing.assert_allclose(decode(found, 128), rows, rtol=1e-6)
    if not symmetric:
        assert (unpack(found.codes) == codes).all()
        assert (unpack(found.zero_points) == zeros[..., 0]).all()


def squared_error(rows, found, importance):
    return float((importance * (decode(found, rows.shape[1]) - rows) ** 2).sum(dtype=np.float64))


@pytest.mark.parametrize(("block_size", "symmetric"), LAYOUTS[2:])
def test_search_beats_rounding_to_nearest(block_size, symmetric, monkeypatch):
    rows = draw(64, 512)
    importance = np.exp(np.random.default_rng(3).normal(0, 1.5, 512)).astype(np.float32)
    plain = quantize_blocks(rows, block_size, symmetric=symmetric)
    weighted = quantize_blocks(rows, block_size, importance, symmetric=symmetric)
    for name in ("CANDIDATES", "SYMMETRIC_CANDIDATES"):
        monkeypatch.setattr(int4, name, ((0, 1.0),))
    nearest = quantize_blocks(rows, block_size, symmetric=symmetric)
    ones = np.ones_like(importance)
    assert squared_error(rows, plain, ones) < 0.985 * squared_error(rows, nearest, ones)
    assert squared_error(rows, weighted, importance) < 0.9 * squared_error(rows, nearest, importance)
    assert squared_error(rows, weighted, importance) < squared_error(rows, plain, importance)


def test_pieces_give_the_codes_of_the_whole(monkeypatch):
    rows, importance = draw(50, 256), np.arange(256, dtype=np.float32)
    whole = quantize_blocks(rows, 64, importance)
    monkeypatch.setattr(int4, "CHUNK", 3 * 256)
    in_pieces = quantize_blocks(rows, 64, importance)
    for one, other in zip(whole, in_pieces, strict=True):
        np.testing.assert_array_equal(one, other)


def test_zeros_and_inputs_that_calibration_never_saw():
    rows = draw(4, 128)
    rows[1] = 0.0
    found = quantize_blocks(rows, 32, np.zeros(128, np.float32))
    np.testing.assert_array_equal(decode(found, 128)[1], 0.0)
    assert np.isfinite(found.scales).all()
    np.testing.assert_array_equal(decode(found, 128), decode(quantize_blocks(rows, 32), 128))
    one_seen = np.zeros(128, np.float32)
    one_seen[7] = 1.0
    error = np.abs(decode(quantize_blocks(rows, 32, one_seen), 128) - rows)
    assert error.max() < 0.02  # the others still count a little

"""int8 codes of kernels and tables."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.quantization.int8 import quantize_columns, quantize_row_blocks, quantize_rows


def test_columns():
    kernel = np.array([[1.27, 0.0, -2.0], [-0.635, 0.0, 1.0], [0.004, 0.0, 0.5]], np.float32)
    codes, scales = quantize_columns(kernel)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float32
    assert codes.tolist() == [[127, 0, -127], [-64, 0, 64], [0, 0, 32]]
    np.testing.assert_allclose(scales, [0.01, 1.0, 2 / 127], rtol=1e-6)


def test_rows():
    block = np.array([[1.27, -0.635, 0.0], [0.0, 0.0, 0.0], [-2.0, 1.0, 0.5]], np.float32)
    codes, scales = quantize_rows(block)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float32
    assert codes.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 64, 32]]
    np.testing.assert_allclose(scales, [0.01, 1.0, 2 / 127], rtol=1e-6)


def test_every_weight_is_off_by_at_most_half_a_step():
    kernel = np.random.default_rng(0).normal(0, 0.02, (300, 70)).astype(np.float32)
    codes, scales = quantize_columns(kernel)
    assert np.abs(codes * scales - kernel).max(axis=0).max() <= scales.max() * 0.5001
    assert (np.abs(codes * scales - kernel) <= scales * 0.5001).all()
    assert np.abs(codes.astype(int)).max(axis=0).tolist() == [127] * 70
    of_rows, row_scales = quantize_rows(np.ascontiguousarray(kernel.T))
    assert (codes == of_rows.T).all()
    assert (row_scales == scales).all()


# === In blocks ===


def test_blocks_of_rows_by_hand():
    rows = np.array([[1.27, -0.635, 0, 0, 0, 0], [-2, 1, 0.5, 254, -1, 3]], np.float32)
    codes, scales = quantize_row_blocks(rows, 3)
    assert (codes.dtype, scales.dtype) == (np.uint8, np.float32)
    assert codes.tolist() == [
        [[255, 64, 128], [128, 128, 128]],
        [[1, 192, 160], [255, 128, 130]],
    ]
    np.testing.assert_allclose(scales, [[0.01, 1], [2 / 127, 2]], rtol=1e-6)


@pytest.mark.parametrize("block", [16, 32, 128])
def test_every_weight_of_a_block_is_off_by_at_most_half_a_step(block):
    rows = np.random.default_rng(0).normal(0, 0.02, (70, 256)).astype(np.float32)
    rows *= np.repeat(np.geomspace(0.01, 100, 256 // block), block)  # each has a range of its own
    codes, scales = quantize_row_blocks(rows, block)
    assert codes.shape == (70, 256 // block, block)
    assert scales.shape == codes.shape[:2]
    found = (codes.astype(np.float32) - 128) * scales[..., None]
    errors = np.abs(found.reshape(rows.shape) - rows).reshape(codes.shape)
    assert (errors <= scales[..., None] * 0.5001).all()
    assert codes.min() == 1
    assert (np.abs(codes.astype(int) - 128).max(axis=2) == 127).all()

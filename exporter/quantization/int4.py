"""int4 codes of matrices in blocks, as `MatMulNBits` and `GatherBlockQuantized` take them.

Both are operators of ONNX Runtime. A block of neighbouring inputs has one float32 scale and one zero
point 0..15: a weight is (code - zero point) times scale. Scales and zero points are searched to make
the error of the output small: the squared errors of the weights, each times the mean square of the
activation it is multiplied with (a diagonal Hessian, as in the search of clipping ranges of AWQ,
https://arxiv.org/abs/2306.00978). Each candidate's codes get the scale that fits them best.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from runtime.system.threads import available_cores

MIDDLE = 8  # the zero point of symmetric codes, which `MatMulNBits` takes where none is given
LARGEST_CODE = 15
# Weights at a time and thread: few enough to stay in the processor's cache while they are worked on,
# enough to keep the threads from waiting for each other.
CHUNK = 1 << 17
# What is tried of each block: its zero point moved, its range shrunk. (0, 1) is rounding to nearest.
# Four ranges for each of three zero points make the squared error 1 % smaller and take twice the time.
CANDIDATES = ((0, 1.0), (0, 0.9), (-1, 0.92), (1, 0.92), (-1, 0.84), (1, 0.84))
SYMMETRIC_CANDIDATES = ((0, 1.0), (0, 0.93), (0, 0.86), (0, 0.79))


class BlockCodes(NamedTuple):
    """A matrix [rows, inputs] in blocks of inputs.

    Attributes:
        codes: uint8 [rows, blocks, block_size / 2], two codes a byte, the lower half first.
        scales: float32 [rows, blocks].
        zero_points: uint8 [rows, ceil(blocks / 2)], packed like the codes; `None` if all are 8.
    """

    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None


def quantize_blocks(
    rows: np.ndarray,
    block_size: int,
    importance: np.ndarray | None = None,
    *,
    symmetric: bool = False,
) -> BlockCodes:
    """Codes of a matrix whose rows are multiplied with the input: a kernel transposed, or a table.

    Args:
        rows: float32 [rows, inputs]; the last block is filled up with zeros.
        block_size: inputs a block: 16 or a larger power of 2.
        importance: float32 [inputs], the mean square of each input; by default all equal.
        symmetric: whether all zero points are 8.
    """
    count, inputs = rows.shape
    blocks = -(-inputs // block_size)
    weight = np.zeros(blocks * block_size, np.float32)
    weight[:inputs] = 1.0 if importance is None else _relative(importance)
    codes = np.empty((count, blocks, block_size), np.uint8)
    scales = np.empty((count, blocks), np.float32)
    zeros = np.empty((count, blocks), np.uint8)
    step = max(1, CHUNK // len(weight))

    def quantize_part(start: int) -> None:
        part = slice(start, start + step)
        values = _pad(rows[part], blocks * block_size)
        _quantize(values, weight, symmetric, codes[part], scales[part], zeros[part])

    with ThreadPoolExecutor(available_cores() or 1) as pool:
        list(pool.map(quantize_part, range(0, count, step)))
    packed = None if symmetric else _pack(_pad(zeros, blocks + blocks % 2))
    return BlockCodes(_pack(codes), scales, packed)


def _relative(importance: np.ndarray) -> np.ndarray:
    """Importance around 1; a floor keeps inputs that calibration never saw from being ignored."""
    mean = importance.mean(dtype=np.float64)
    if not mean > 0:
        return np.ones_like(importance)
    return np.maximum(importance / mean, 1e-2).astype(np.float32)


def _pad(rows: np.ndarray, width: int) -> np.ndarray:
    """Rows filled up with zeros."""
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])))


def _pack(codes: np.ndarray) -> np.ndarray:
    """Neighbours of the last axis in one byte, the first in the lower half."""
    return codes[..., ::2] | codes[..., 1::2] << 4


def _quantize(
    rows: np.ndarray,
    weight: np.ndarray,
    symmetric: bool,
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
) -> None:
    """Writes codes [rows, blocks, block_size], scales and zero points [rows, blocks] of a few rows."""
    count, blocks, size = codes.shape
    # One block a column: what follows goes along the columns of many blocks at once.
    values = np.ascontiguousarray(rows.reshape(count * blocks, size).T)
    weights = np.tile(weight.reshape(blocks, size).T, (1, count))
    steps, points = _starting_point(values, symmetric)
    weighted = values * weights
    best = np.full(values.shape[1], -1.0, np.float32)
    scale, zero = np.ones_like(best), np.full_like(best, MIDDLE)
    for shift, shrinking in SYMMETRIC_CANDIDATES if symmetric else CANDIDATES:
        shifted = np.clip(points + shift, 0, LARGEST_CODE)
        quotients = _round(values, steps * np.float32(shrinking), shifted)
        # Least squares gives these codes their scale; what it explains is what error it saves.
        along = np.einsum("ij,ij->j", weighted, quotients)
        quotients *= quotients
        square = np.einsum("ij,ij->j", weights, quotients)
        fitted = along / np.maximum(square, np.float32(1e-30))
        explained = along * fitted
        better = explained > best
        best[better] = explained[better]
        scale[better] = fitted[better]
        zero[better] = shifted[better]
    scale[scale == 0] = 1
    quotients = _round(values, scale, zero) + zero
    codes[...] = quotients.T.reshape(codes.shape)
    scales[...] = scale.reshape(scales.shape)
    zeros[...] = zero.reshape(zeros.shape)


def _starting_point(values: np.ndarray, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point [blocks] with which a block's extremes get the outermost codes."""
    high, low = values.max(axis=0), values.min(axis=0)
    if symmetric:  # the larger extreme gets code 0, which is one step farther away than code 15
        extreme = np.where(high > -low, high, low)
        steps = extreme / np.float32(-MIDDLE)
        points = np.full_like(steps, MIDDLE)
    else:
        high, low = np.maximum(high, 0), np.minimum(low, 0)
        steps = (high - low) / np.float32(LARGEST_CODE)
        points = np.rint(-low / np.where(steps > 0, steps, 1))
    return np.where(steps == 0, np.float32(1), steps), points


def _round(values: np.ndarray, steps: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Codes less their zero point, float32 like the values."""
    quotients = values * (1 / steps)
    np.rint(quotients, out=quotients)
    np.maximum(quotients, -points, out=quotients)
    return np.minimum(quotients, LARGEST_CODE - points, out=quotients)

"""Symmetric int8 codes of matrices: codes -127..127 times one float32 scale a column or row."""

from __future__ import annotations

import numpy as np

LARGEST_CODE = 127
MIDDLE = 128  # what stands for zero where codes are unsigned
CHUNK = 1 << 17  # weights at a time, so that what is computed of them stays in the processor's cache


def quantize_columns(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a dense kernel, one scale for each output.

    Args:
        kernel: float32 [inputs, outputs].

    Returns:
        Codes int8 [inputs, outputs] and scales float32 [outputs]; their product is the kernel.
    """
    scales = _scales(np.maximum(kernel.max(axis=0), -kernel.min(axis=0)))
    return _codes(kernel, scales), scales


def quantize_rows(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of consecutive rows of a table, one scale for each row.

    Args:
        block: float32 [rows, width].

    Returns:
        Codes int8 [rows, width] and scales float32 [rows].
    """
    scales = _scales(np.maximum(block.max(axis=1), -block.min(axis=1)))
    return _codes(block, scales[:, None]), scales


def quantize_row_blocks(rows: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a matrix in blocks of inputs, one scale for each block, as `MatMulNBits` takes them.

    Args:
        rows: float32 [rows, inputs].
        block_size: inputs a block, which divides them.

    Returns:
        Codes uint8 [rows, blocks, block_size], 128 more than the signed ones, and scales float32
        [rows, blocks].
    """
    count, inputs = rows.shape
    codes, scales = quantize_rows(rows.reshape(-1, block_size))
    unsigned = (codes.view(np.uint8) + np.uint8(MIDDLE)).reshape(count, -1, block_size)
    return unsigned, scales.reshape(count, inputs // block_size)


def _scales(largest: np.ndarray) -> np.ndarray:
    """What maps the largest magnitudes to the largest code; 1 where all is zero."""
    return np.where(largest > 0, largest / np.float32(LARGEST_CODE), np.float32(1))


def _codes(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Codes of values [rows, columns]; scales [columns] or [rows, 1]."""
    codes = np.empty(values.shape, np.int8)
    step = max(1, CHUNK // max(1, values.shape[1]))
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        quotients = values[part] / (scales if scales.ndim == 1 else scales[part])
        codes[part] = np.rint(quotients, out=quotients)
    return codes

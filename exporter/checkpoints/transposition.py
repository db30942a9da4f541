"""Transposes large matrices fast: in tiles that stay in the processor's cache, on all cores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from runtime.system.threads import available_cores

TILE = 256  # rows and columns; measured with float16 and float32 matrices of 4,096 by 16,384


def transpose_into(values: np.ndarray, out: np.ndarray) -> None:
    """Writes a matrix's transpose in another dtype.

    NumPy's own copy strides through memory a cache line for each value: 0.62 s for 67 million of
    float16 into float32, where this takes 0.17.

    Args:
        values: [rows, columns].
        out: [columns, rows], written to.
    """

    def transpose_rows(start: int) -> None:
        rows = slice(start, start + TILE)
        cast = values[rows].astype(out.dtype)
        for column in range(0, values.shape[1], TILE):
            columns = slice(column, column + TILE)
            out[columns, rows] = cast[:, columns].T

    with ThreadPoolExecutor(available_cores() or 1) as pool:
        list(pool.map(transpose_rows, range(0, len(values), TILE)))

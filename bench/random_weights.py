"""Random weights, initialised as OPT's were, that depend on a weight's name and the seed only.

So two checkpoints of one seed hold the same model in whatever format and order they are written.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from exporter.checkpoints.weight_map import BLOCK_BYTES, BoundTarget

OPT_DEVIATION = 0.02  # the standard deviation that OPT's matrices were initialised with
VECTOR_DEVIATION = 0.02  # zeros and ones would hide a mistake in a bias or a norm


def value_blocks(
    target: BoundTarget, seed: int, deviation: float = OPT_DEVIATION
) -> Iterator[np.ndarray]:
    """A weight's float32 values in consecutive runs of rows, of bounded size.

    All are normal around 0, the scales of norms around 1. `deviation` is that of matrices.
    """
    generator = np.random.default_rng([seed, zlib.crc32(target.name.encode())])
    center = 1.0 if target.name.endswith("/gamma") else 0.0
    rows, *rest = target.shape
    step = max(1, BLOCK_BYTES // (4 * int(np.prod(rest))))
    for start in range(0, rows, step):
        block = generator.standard_normal((min(step, rows - start), *rest), dtype=np.float32)
        block *= deviation if rest else VECTOR_DEVIATION
        block += center
        yield block

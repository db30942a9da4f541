"""Weights of a toy model for tests of quantization, without a checkpoint."""

from __future__ import annotations

import numpy as np

from exporter.tracing import build_weightless_backbone, weight_shapes


class DrawnWeights:
    """A weight source of random values, in `values` by name; read in blocks of a few rows."""

    def __init__(self, config, seed=0, block_rows=10**6):
        generator = np.random.default_rng(seed)
        self.block_rows = block_rows
        self.values = {
            name: (generator.normal(0.0, 0.2, shape) + name.endswith("gamma")).astype(np.float32)
            for name, shape in weight_shapes(build_weightless_backbone(config)).items()
        }

    @property
    def shapes(self):
        return {name: value.shape for name, value in self.values.items()}

    def blocks(self, name):
        for start in range(0, len(self.values[name]), self.block_rows):
            yield self.values[name][start : start + self.block_rows]

    def close(self):
        pass

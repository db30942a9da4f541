"""Checkpoints in memory for the tests of weight maps."""

from __future__ import annotations

import numpy as np

from exporter.checkpoints.formats import HUGGING_FACE, KERAS_PRESET
from exporter.checkpoints.weight_map import bind_names

FORMATS = {"keras": KERAS_PRESET, "huggingface": HUGGING_FACE}


class DictReader:
    """A `TensorReader` over arrays in memory."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.reads = []

    @property
    def shapes(self):
        return {name: value.shape for name, value in self.tensors.items()}

    def read(self, name, start=0, stop=None):
        self.reads.append((name, start, stop))
        return self.tensors[name][start:stop]

    def close(self):
        pass


def random_weights(targets, seed=0):
    generator = np.random.default_rng(seed)
    return {t.name: generator.normal(size=t.shape).astype(np.float32) for t in targets}


def random_reader(weight_map, config, seed=0):
    """Random tensors in a format's names and shapes, padding rows not zero."""
    generator = np.random.default_rng(seed)
    return DictReader(
        {
            source.name: generator.normal(size=source.shape).astype(np.float32)
            for target in bind_names(weight_map, config)
            for source in target.sources
        }
    )

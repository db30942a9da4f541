"""One interface to this project's OPT classes and keras-hub's, for the walk through Keras's guides.

A test with the fixture `family` runs with this project's classes and, with `--slow`, with keras-hub's:
what it asserts is what both do.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.conformance.airports import MERGES, SEQUENCE_LENGTH, vocabulary

TEXTS = ["airplane at airport", " airport", " at airplane", "airport at"]
SIZES = {
    "vocabulary_size": len(vocabulary()),
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
    "max_sequence_length": SEQUENCE_LENGTH,
}


@dataclass(frozen=True)
class Family:
    """The classes of one project.

    Attributes:
        models, samplers: modules that hold them.
    """

    models: Any
    samplers: Any

    @classmethod
    def of(cls, name: str) -> Family:
        """The family of `"exporter"` or `"keras_hub"`."""
        if name == "exporter":
            return cls(importlib.import_module("exporter"), importlib.import_module("runtime.samplers"))
        module = importlib.import_module(name)
        return cls(module.models, module.samplers)

    def backbone(self, seed: int = 0, **options: Any) -> Any:
        """A backbone of one layer with random weights."""
        backbone = self.models.OPTBackbone(**{**SIZES, "dropout": 0.0, **options})
        generator = np.random.default_rng(seed)
        for variable in backbone.weights:
            variable.assign(generator.normal(0, 0.3, variable.shape))
        return backbone

    def preprocessor(self, length: int = SEQUENCE_LENGTH) -> Any:
        """A preprocessor over the toy vocabulary."""
        tokenizer = self.models.OPTTokenizer(vocabulary=vocabulary(), merges=MERGES)
        return self.models.OPTCausalLMPreprocessor(tokenizer, sequence_length=length)

    def model(self, seed: int = 0, preprocessor: bool = True, **options: Any) -> Any:
        """A language model with random weights; runs eagerly, which is quicker for a step or two."""
        model = self.models.OPTCausalLM(
            backbone=self.backbone(seed, **options),
            preprocessor=self.preprocessor() if preprocessor else None,
        )
        model.compile(sampler="greedy", run_eagerly=True)
        return model


def tokens(rows: int = 2, length: int = SEQUENCE_LENGTH) -> dict[str, np.ndarray]:
    """Token ids and padding mask [rows, length]; the last row is padded by half."""
    ids = np.random.default_rng(3).integers(0, SIZES["vocabulary_size"], (rows, length)).astype("int32")
    mask = np.ones_like(ids)
    mask[-1, length // 2 :] = 0
    return {"token_ids": ids, "padding_mask": mask}


def tensors(prefix: str = "") -> dict[str, Any]:
    """Symbolic inputs of a functional model."""
    import keras

    names = ("token_ids", "padding_mask")
    return {name: keras.Input((None,), dtype="int32", name=prefix + name) for name in names}

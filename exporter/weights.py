"""Where the weights of an export come from: a checkpoint on disk, or a live Keras model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from exporter.checkpoints.finite_blocks import finite_blocks
from exporter.checkpoints.weight_map import BLOCK_BYTES
from exporter.opt.backbone import OPTBackbone
from exporter.opt.keras_backend import keras
from exporter.opt.lora import adapted_layers, low_rank_variables
from exporter.presets.folder import PresetFolder
from exporter.progress import Progress


class WeightSource(Protocol):
    """Gives the weights of a model by their Keras paths, a piece at a time."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight."""

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """A weight's float32 values in consecutive runs of rows."""

    def close(self) -> None:
        """Frees what reading needs."""


class CheckpointWeights:
    """The weights of a preset folder."""

    def __init__(self, folder: PresetFolder) -> None:
        self._reader, targets = folder.open_weights()
        self._origin = folder.folder
        self._targets = {target.name: target for target in targets}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: target.shape for name, target in self._targets.items()}

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        target = self._targets[name]
        sources = ", ".join(source.name for source in target.sources)
        return finite_blocks(target.blocks(self._reader), f"{sources} of {self._origin}")

    def close(self) -> None:
        """Closes the files."""
        self._reader.close()


class LiveWeights:
    """The weights of a Keras backbone as they are now, LoRA pairs merged into their matrices.

    Raises:
        ValueError: if Keras's `quantize()` has replaced weights by integer codes.
    """

    def __init__(self, backbone: OPTBackbone) -> None:
        self._adapted = adapted_layers(backbone)
        pairs = {id(variable) for variable in low_rank_variables(backbone).values()}
        self._variables = {v.path: v for v in backbone.weights if id(v) not in pairs}
        codes = {path: v.dtype for path, v in self._variables.items() if "int" in v.dtype}
        if codes:
            kinds = ", ".join(sorted(set(codes.values())))
            raise ValueError(
                f"this model was quantized in place, so {', '.join(codes)} hold {kinds} codes and no "
                "longer weights; write the model as it was before quantize()"
            )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(variable.shape) for name, variable in self._variables.items()}

    def value(self, name: str) -> np.ndarray:
        """A whole weight in the dtype of its variable."""
        variable = self._variables[name]
        if name in self._adapted:
            return self._adapted[name].merged_kernel().astype(variable.dtype)
        return keras.ops.convert_to_numpy(variable.value)

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        values = self.value(name)
        step = max(1, BLOCK_BYTES // max(1, values[:1].nbytes))
        blocks = (
            np.ascontiguousarray(values[start : start + step], np.float32)
            for start in range(0, len(values), step)
        )
        return finite_blocks(blocks, f"{name} of the model")

    def close(self) -> None:
        """Nothing to close."""


class CountedWeights:
    """Another source's weights; progress is told of every block that is read."""

    def __init__(self, source: WeightSource, progress: Progress) -> None:
        self._source, self._progress = source, progress

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._source.shapes

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        for block in self._source.blocks(name):
            yield block
            self._progress.advance(block.nbytes)

    def close(self) -> None:
        """Closes the other source."""
        self._source.close()


def float_bytes(source: WeightSource, names: Iterable[str]) -> int:
    """What weights take in float32, as they are read."""
    return sum(4 * math.prod(source.shapes[name]) for name in names)


def read_weight(source: WeightSource, name: str) -> np.ndarray:
    """A whole weight, float32."""
    blocks = list(source.blocks(name))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

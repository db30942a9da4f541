"""Where the weights of an export come from: a checkpoint on disk, or see `exporter.model_weights`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from exporter.checkpoints.finite_blocks import finite_blocks
from exporter.presets.folder import PresetFolder

if TYPE_CHECKING:
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

    def padding_positions(self) -> np.ndarray | None:
        """The rows of the position table that are for padding, as stored; `None` if none are."""
        for target in self._targets.values():
            source = target.sources[0]
            if source.skip_rows:
                return self._reader.read(source.name, 0, source.skip_rows)
        return None

    def close(self) -> None:
        """Closes the files."""
        self._reader.close()


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

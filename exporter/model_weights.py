"""The weights of a live Keras model, as an export takes them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from exporter.checkpoints.finite_blocks import finite_blocks
from exporter.checkpoints.weight_map import BLOCK_BYTES
from exporter.opt.backbone import OPTBackbone
from exporter.opt.keras_backend import keras
from exporter.opt.lora import adapted_layers, low_rank_variables
from graphs.shown import listed


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
                f"this model was quantized in place, so {listed(codes)} hold {kinds} codes and no "
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

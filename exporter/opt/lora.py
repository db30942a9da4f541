"""Low-rank adaptation of an OPT backbone (Hu et al., 2021, https://arxiv.org/abs/2106.09685).

An adapted matrix W stays as it is, and its layer gives x W + (alpha / rank) x A B for a small pair A
[in, rank] and B [rank, out]. B begins as zero, so that enabling changes no output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.opt.keras_backend import keras
from graphs.shown import listed

if TYPE_CHECKING:
    from exporter.opt.backbone import OPTBackbone

ops = keras.ops

QKV_PARTS = ("query", "key", "value")
WHOLE = ("kernel",)

# keras-hub's name of each matrix: the dense layer that holds it here, and which part of it it is.
TARGETS = {
    "query": ("attention/qkv", "query"),
    "key": ("attention/qkv", "key"),
    "value": ("attention/qkv", "value"),
    "attention_output": ("attention/output", "kernel"),
    "feedforward_intermediate_dense": ("intermediate", "kernel"),
    "feedforward_output_dense": ("output", "kernel"),
}
DEFAULT_TARGETS = ("query", "value")
# What keras-hub's default list calls them in other families.
ALIASES = {f"{part}_dense": part for part in QKV_PARTS}


@dataclass(frozen=True)
class LoRA:
    """What is adapted, and how.

    Attributes:
        rank: of the pairs.
        alpha: the pairs' product is scaled by `alpha / rank`.
        targets: names from `TARGETS`, in that order.

    Raises:
        ValueError: if a value is none of these.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f"rank must be a whole number of at least 1, got {self.rank!r}")
        number = isinstance(self.alpha, (int, float)) and not isinstance(self.alpha, bool)
        if not number or not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha must be a positive number, got {self.alpha!r}")
        unknown = [repr(name) for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise ValueError(
                f"target_layer_names must be some of {', '.join(TARGETS)}; "
                f"got {listed(unknown) or 'none'}"
            )

    @classmethod
    def of(
        cls, rank: int, alpha: float | None = None, target_layer_names: Sequence[str] | None = None
    ) -> LoRA:
        """The settings of `OPTBackbone.enable_lora`'s arguments; `alpha` is the rank by default."""
        if isinstance(target_layer_names, str):
            target_layer_names = [target_layer_names]
        given = DEFAULT_TARGETS if target_layer_names is None else tuple(target_layer_names)
        names = {ALIASES.get(name, name) for name in given}
        known = tuple(name for name in TARGETS if name in names)
        targets = known + tuple(sorted(names - set(TARGETS), key=str))
        return cls(rank, rank if alpha is None else alpha, targets)

    def parts(self, dense: str) -> tuple[str, ...]:
        """The adapted parts of a dense layer, by its path in the decoder layer; none for most."""
        return tuple(TARGETS[t][1] for t in self.targets if TARGETS[t][0] == dense)


@keras.saving.register_keras_serializable(package="opt_onnx")
class LowRankDense(keras.layers.Dense):
    """A dense layer that low-rank pairs can adapt, the whole of it or parts of its output.

    Args:
        units: int. The width of the output.
        parts: names of equal parts of the output; `("query", "key", "value")` say.
        **kwargs: see `keras.layers.Dense`.
    """

    def __init__(self, units: int, parts: Sequence[str] = WHOLE, **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        self.parts = tuple(parts)
        self.pairs: dict[str, tuple[Any, Any]] = {}
        self.low_rank_scale = 1.0

    def enable_lora(  # Keras's own knows no parts
        self,
        rank: int,
        lora_alpha: float | None = None,
        a_initializer: Any = "he_uniform",
        b_initializer: Any = "zeros",
        parts: Sequence[str] | None = None,
    ) -> None:
        """Freezes the layer and gives parts of it, by default all, trainable pairs in float32.

        Raises:
            ValueError: if the layer is not built or has pairs already, or for a rank, an alpha or a
                part that there is not.
        """
        if not self.built:
            raise ValueError(f"{self.name} has no kernel to adapt yet; build the layer first")
        if self.pairs:
            raise ValueError(f"LoRA is already enabled on {self.path}")
        LoRA.of(rank, lora_alpha)  # which refuses what is none
        if parts is not None and not (parts and set(parts) <= set(self.parts)):
            raise ValueError(f"parts must be some of {', '.join(self.parts)}; got {parts!r}")
        rows, width = self.kernel.shape[0], self.units // len(self.parts)
        self._tracker.unlock()  # as Keras does; there is no public way to add weights later
        for part in self.parts if parts is None else parts:
            a, b = (
                self.add_weight(
                    name=f"lora_{part}_{side}", shape=shape, initializer=initializer, dtype="float32"
                )
                for side, shape, initializer in (
                    ("a", (rows, rank), a_initializer),
                    ("b", (rank, width), b_initializer),
                )
            )
            self.pairs[part] = (a, b)
        self._tracker.lock()
        self.low_rank_scale = (rank if lora_alpha is None else lora_alpha) / rank
        self.trainable = True
        for variable in self._base_variables:
            variable.trainable = False

    @property
    def _base_variables(self) -> list[Any]:
        return [self.kernel] if self.bias is None else [self.kernel, self.bias]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Args: inputs [..., in]. Returns [..., units]."""
        outputs = super().call(inputs, training=training)
        return outputs + self._low_rank(inputs) if self.pairs else outputs

    def _low_rank(self, inputs: Any) -> Any:
        """All pairs in two products: [..., in] by every A beside the other, then by every B in its
        own columns. Adding A B to the kernel instead would cost the whole kernel's gradient.
        """
        sides = [ops.cast(a, self.compute_dtype) for a, _ in self.pairs.values()]
        inner = ops.matmul(inputs, ops.concatenate(sides, axis=1))
        return ops.matmul(inner * self.low_rank_scale, self._spread())

    def _spread(self) -> Any:
        """The B of each pair [rank, width] as rows of a matrix [pairs * rank, units], else zero."""
        rows = []
        for adapted, (_, b) in self.pairs.items():
            b = ops.cast(b, self.compute_dtype)
            zeros = ops.zeros_like(b)
            rows.append(
                ops.concatenate([b if part == adapted else zeros for part in self.parts], axis=1)
            )
        return ops.concatenate(rows, axis=0)

    def merged_kernel(self) -> np.ndarray:
        """The kernel with its pairs added, float32 [in, units]."""
        merged = np.array(ops.convert_to_numpy(self.kernel.value), np.float32)
        width = self.units // len(self.parts)
        for part, (a, b) in self.pairs.items():
            start = self.parts.index(part) * width
            product = ops.convert_to_numpy(a.value) @ ops.convert_to_numpy(b.value)
            merged[:, start : start + width] += self.low_rank_scale * product
        return merged

    def save_own_variables(self, store: Any) -> None:
        """Saves the merged kernel, as Keras's layers do; the pairs alone have their own file."""
        if not self.pairs:
            super().save_own_variables(store)
            return
        values = [ops.cast(self.merged_kernel(), self.kernel.dtype), *self._base_variables[1:]]
        for i, value in enumerate(values):
            store[str(i)] = value

    def load_own_variables(self, store: Any) -> None:
        """Loads a merged kernel; what the pairs had learned is in it, so they begin anew."""
        if not self.pairs:
            super().load_own_variables(store)
            return
        for i, variable in enumerate(self._base_variables):
            variable.assign(store[str(i)])
        for _, b in self.pairs.values():  # Keras zeros A too, and such a pair never learns again
            b.assign(ops.zeros_like(b))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "parts": self.parts}


def enable(backbone: OPTBackbone, lora: LoRA) -> None:
    """Freezes a backbone and adapts its targets; see `OPTBackbone.enable_lora`."""
    backbone.trainable = True  # the model itself; its variables are frozen one by one
    for variable in backbone.weights:
        variable.trainable = False
    for layer in backbone.transformer_layers:
        for name, dense in layer.dense_layers.items():
            parts = lora.parts(name)
            if parts:
                dense.enable_lora(lora.rank, lora.alpha, parts=parts)


def adapted_layers(backbone: OPTBackbone) -> dict[str, LowRankDense]:
    """The layers that have pairs, by the path of their kernel."""
    return {
        dense.kernel.path: dense
        for layer in backbone.transformer_layers
        for dense in layer.dense_layers.values()
        if dense.pairs
    }


def low_rank_variables(backbone: OPTBackbone) -> dict[str, Any]:
    """The variables of all pairs, float32: what an adapter consists of.

    Their names are the kernel's path with `lora_PART_a` and `lora_PART_b` in place of `kernel`;
    Keras's own paths of weights that are added later lack the outer layers.
    """
    return {
        pair_name(path, part, side): variable
        for path, dense in adapted_layers(backbone).items()
        for part, pair in dense.pairs.items()
        for side, variable in zip("ab", pair, strict=True)
    }


def pair_shapes(backbone: OPTBackbone, lora: LoRA) -> dict[str, tuple[int, ...]]:
    """What `low_rank_variables` gives, as shapes, once `lora` is enabled."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in backbone.transformer_layers:
        for name, dense in layer.dense_layers.items():
            for part in lora.parts(name):
                path = dense.kernel.path
                shapes[pair_name(path, part, "a")] = (dense.kernel.shape[0], lora.rank)
                shapes[pair_name(path, part, "b")] = (lora.rank, dense.units // len(dense.parts))
    return shapes


def pair_name(kernel: str, part: str, side: str) -> str:
    """Name of one variable of a pair, by the path of its kernel."""
    return f"{kernel.removesuffix('kernel')}lora_{part}_{side}"

"""Optimizing weights that are stored in a narrow dtype."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from exporter.opt.keras_backend import keras

ops = keras.ops
NARROW = ("float16", "bfloat16")


@keras.saving.register_keras_serializable(package="opt_onnx")
class MasterWeightOptimizer(keras.optimizers.Optimizer):
    """Runs an optimizer on float32 copies of narrow weights (https://arxiv.org/abs/1710.03740).

    Keras's optimizers compute in the dtype of the weights, where a small step is lost in rounding,
    Adam's `1 - 0.999` is 0 (bfloat16) and its squared gradients underflow (float16). The copies
    follow weights that are assigned from elsewhere.

    Args:
        inner_optimizer: a `keras.optimizers.Optimizer` that is not built.
    """

    def __init__(self, inner_optimizer: Any, name: str = "master_weight_optimizer") -> None:
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer

    def build(self, variables: list[Any]) -> None:
        """Makes a float32 copy of each narrow variable, by its place among the variables."""
        self._masters = {
            str(i): keras.Variable(
                ops.cast(v, "float32"), trainable=False, dtype="float32", name=f"{v.name}_master"
            )
            for i, v in enumerate(variables)
            if v.dtype in NARROW
        }
        self.inner_optimizer.build([self._master(i, v) for i, v in enumerate(variables)])
        super().build(variables)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """One step of the inner optimizer on the copies, rounded into the variables."""
        variables = list(trainable_variables or self._trainable_variables)
        if not self.built:
            with keras.name_scope(self.name):
                self.build(variables)
        pairs = [(self._master(self._get_variable_index(v), v), v) for v in variables]
        narrow = [(master, v) for master, v in pairs if master is not v]
        for master, v in narrow:  # a variable that is not its copy rounded was assigned elsewhere
            same = ops.equal(ops.cast(master, v.dtype), v)
            master.assign(ops.where(same, master, ops.cast(v, "float32")))
        wide = [
            g if g is None or master is v else tf.cast(g, "float32")
            for g, (master, v) in zip(grads, pairs, strict=True)
        ]
        self.inner_optimizer.apply(wide, [master for master, _ in pairs])
        for master, v in narrow:
            v.assign(ops.cast(master, v.dtype))

    def _master(self, index: int, variable: Any) -> Any:
        return self._masters.get(str(index), variable)

    @property
    def variables(self) -> list[Any]:
        return self._variables + self.inner_optimizer.variables

    @property
    def learning_rate(self) -> Any:
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        return self.inner_optimizer.iterations

    def scale_loss(self, loss: Any) -> Any:
        """As the inner optimizer scales it."""
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, variables: list[Any]) -> None:
        """Has the inner optimizer do its last step, an average of the weights say."""
        masters = [self._master(self._get_variable_index(v), v) for v in variables]
        self.inner_optimizer.finalize_variable_values(masters)
        for master, v in zip(masters, variables, strict=True):
            if master is not v:
                v.assign(ops.cast(master, v.dtype))

    def get_config(self) -> dict[str, Any]:
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        return {"name": self.name, "inner_optimizer": inner}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MasterWeightOptimizer:
        inner = keras.saving.deserialize_keras_object(config["inner_optimizer"], custom_objects)
        return cls(inner, config["name"])


def for_dtypes(optimizer: Any, policy: Any, scale_loss: bool) -> Any:
    """An optimizer as a model of a dtype policy needs it.

    Args:
        optimizer: as `keras.Model.compile` takes it, or `None`.
        policy: the model's `keras.DTypePolicy`.
        scale_loss: whether float16 gradients are kept from underflow by scaling the loss. For
            `"mixed_float16"` Keras itself does it.
    """
    if optimizer is None or policy.variable_dtype not in NARROW:
        return optimizer
    optimizer = keras.optimizers.get(optimizer)
    if isinstance(optimizer, MasterWeightOptimizer):
        return optimizer
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if policy.compute_dtype == "float16" and scale_loss and not scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return MasterWeightOptimizer(optimizer)

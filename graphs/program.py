"""A graph on its way from the tracer to a bundle: rewritten first, bound to weights last."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphs.contract import ModelConfig
from graphs.quantization import StoredTensor


@dataclass
class Program:
    """An ONNX graph whose weights have names and shapes but no values.

    Attributes:
        model: the graph. Its inputs and outputs are the contract's.
        weights: the graph's weight values by the name of the model's weight, or of the stored tensor
            that a pass put in its place.
        config: sizes and switches of the model.
        views: weights that share the bytes of another one, by name.
    """

    model: ir.Model
    weights: dict[str, ir.Value]
    config: ModelConfig
    views: dict[str, str] = field(default_factory=dict)

    @property
    def graph(self) -> ir.Graph:
        """The graph itself."""
        return self.model.graph

    def stored(self, tensor: StoredTensor) -> ir.Value:
        """The weight value of a stored tensor, made at the first call with its name."""
        if tensor.view_of is not None:
            self.views[tensor.name] = tensor.view_of
        if tensor.name not in self.weights:
            self.weights[tensor.name] = ir.Value(
                name=tensor.name,
                shape=ir.Shape(tensor.shape),
                type=ir.TensorType(ir.DataType.from_numpy(np.dtype(tensor.dtype))),
            )
        return self.weights[tensor.name]

    def shape_of(self, weight: str) -> tuple[int, ...]:
        """The shape of a weight, by its name."""
        shape = self.weights[weight].shape
        assert shape is not None
        return shape.numpy()

    def name_of(self, value: ir.Value | None) -> str | None:
        """The name of the weight that a value is, or `None`."""
        name = value.name if value is not None else None
        return name if name is not None and self.weights.get(name) is value else None

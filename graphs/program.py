"""A graph on its way from the tracer to a bundle: rewritten first, bound to weights last."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphs.contract import ModelConfig


@dataclass
class Program:
    """An ONNX graph whose weights have names and shapes but no values.

    Attributes:
        model: the graph. Its inputs and outputs are the contract's.
        weights: the graph's weight values by the name of the model's weight.
        config: sizes and switches of the model.
    """

    model: ir.Model
    weights: dict[str, ir.Value]
    config: ModelConfig

    @property
    def graph(self) -> ir.Graph:
        """The graph itself."""
        return self.model.graph

"""Graphs made by hand whose weights have a model's names, and values for what passes store of them."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from graphs.contract import ModelConfig
from graphs.program import Program
from tests.graphs.pass_helpers import Arrays, parse, run_model, with_weights

# Names that the passes go by, and what stands for them in ONNX's text form.
KERNEL = "transformer_layer_0/output/kernel"
TABLE = "embeddings/token_embedding/embeddings"
POSITIONS = "embeddings/position_embedding/embeddings"
HEAD = "head/embeddings"
NAMES = {"kernel": KERNEL, "table": TABLE, "positions": POSITIONS, "head": HEAD}


def parse_named(text: str, weights: set[str], config: ModelConfig, **names: str) -> Program:
    """A program from ONNX's text form whose weights have a model's names, or those that are given."""
    program = parse(text, weights, config)
    for short, name in {**NAMES, **names}.items():
        if short in program.weights:
            program.weights[name] = program.weights.pop(short)
            program.weights[name].name = name
    return program


def run_stored(program: Program, stored: Arrays, inputs: Arrays) -> Arrays:
    """What a rewritten graph computes with values for its stored tensors; the graph must be valid.

    `inputs` are those of the graph, weights that were not rewritten among them.
    """
    model = with_weights(ir.to_proto(program.model), stored)
    unused = {value.name for value in model.graph.input} - set(inputs)
    kept = [value for value in model.graph.input if value.name not in unused]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    onnx.checker.check_model(model)
    return run_model(model, inputs)

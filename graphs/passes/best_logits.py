"""Ranks the largest logits on the device, so that the host can draw a token without reading all.

A vocabulary is ranked in parts first: one GPU block reads a whole row in the ranking kernel, and many
short rows keep many blocks busy. The sum that makes probabilities of the ranked logits is taken over
the whole vocabulary, at a temperature that is given for each.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphs.contract import (
    BEST_IDS,
    BEST_LOGITS,
    INVERSE_TEMPERATURES,
    LOGITS,
    WEIGHT_TOTALS,
    Phase,
    Revision,
    best_count,
    graph_outputs,
)
from graphs.passes.matching import shared_constant
from graphs.program import Program

MOST_PARTS = 64


def rank_logits(program: Program) -> int:
    """Adds the outputs of `Revision.DEVICE` to a graph with its inputs; returns 1."""
    graph, config = program.graph, program.config
    logits = next(value for value in graph.outputs if value.name == LOGITS)
    given = next((v for v in graph.inputs if v.name == INVERSE_TEMPERATURES), None)
    if given is None or any(value.name == BEST_LOGITS for value in graph.outputs):
        return 0
    nodes: list[ir.Node] = []

    def add(kind: str, inputs: list[ir.Value], outputs: int = 1, **attributes: int) -> list[ir.Value]:
        node = ir.node(kind, inputs, attributes, num_outputs=outputs)
        nodes.append(node)
        return list(node.outputs)

    def numbers(name: str, *values: int) -> ir.Value:
        return shared_constant(graph, name, np.array(values))

    count = numbers("best_count", best_count(config))
    parts = vocabulary_parts(config.vocabulary_size, best_count(config))
    if parts == 1:
        best, ids = add("TopK", [logits, count], 2, axis=-1)
    else:
        size = config.vocabulary_size // parts
        rows = add("Reshape", [logits, numbers("vocabulary_parts", 0, parts, size)])[0]
        part_best, part_ids = add("TopK", [rows, count], 2, axis=-1)
        starts = shared_constant(graph, "part_starts", size * np.arange(parts).reshape(1, parts, 1))
        flat = numbers("part_candidates", 0, parts * best_count(config))
        whole_ids = add("Add", [part_ids, starts])[0]
        candidates = add("Reshape", [part_best, flat])[0]
        candidate_ids = add("Reshape", [whole_ids, flat])[0]
        best, places = add("TopK", [candidates, count], 2, axis=-1)
        ids = add("GatherElements", [candidate_ids, places], axis=1)[0]
    zero, one = numbers("first", 0), numbers("second", 1)
    largest = add("Slice", [best, zero, one, one])[0]
    shifted = add("Sub", [logits, largest])[0]
    weights = add("Exp", [add("Mul", [shifted, given])[0]])[0]
    totals = add("ReduceSum", [weights, one], keepdims=0)[0]
    specs = {spec.name: spec for spec in graph_outputs(config, Phase.PREFILL, revision=Revision.DEVICE)}
    for name, value in ((BEST_LOGITS, best), (BEST_IDS, ids), (WEIGHT_TOTALS, totals)):
        value.name, value.shape = name, ir.Shape(specs[name].shape)
        value.dtype = ir.DataType.INT64 if name == BEST_IDS else ir.DataType.FLOAT
    producing = logits.producer()
    assert producing is not None
    graph.insert_after(producing, nodes)
    graph.outputs[2:2] = [best, ids, totals]
    return 1


def vocabulary_parts(size: int, count: int) -> int:
    """In how many equal parts a vocabulary is ranked first: 1 where it cannot be cut well."""
    choices = [n for n in range(2, MOST_PARTS + 1) if size % n == 0 and size // n >= 4 * count]
    return max(choices, default=1)

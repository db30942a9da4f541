"""Gives the token embedding a view of its own on a table that also computes the logits.

ONNX Runtime packs the head's weights and then drops its map of the original, unless another node reads
that too. The embedding reads a few rows; through a view it maps those alone, not the whole table again.
"""

from __future__ import annotations

from graphs.passes.dense import token_lookup
from graphs.program import Program
from graphs.quantization import StoredTensor


def separate_lookup(program: Program) -> int:
    """Rewrites the lookup of tokens in a tied table; returns how many."""
    lookup = token_lookup(program) if program.config.tied_head else None
    if lookup is None:
        return 0
    shape = (program.config.vocabulary_size, program.config.embedding_width)
    table = StoredTensor(lookup.weight, "float32", shape)
    lookup.node.replace_input_with(0, program.stored(table.view(f"{lookup.weight}.rows", shape)))
    return 1

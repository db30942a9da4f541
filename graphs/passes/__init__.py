"""Rewrite passes, and the order they run in.

Each pass is one file: what it looks for, what it puts there, and how many it rewrote.
"""

from __future__ import annotations

from graphs.contract import ModelConfig
from graphs.passes.head import fuse_head
from graphs.passes.layer_norm import fuse_layer_norm
from graphs.program import Program

PASSES = (fuse_layer_norm, fuse_head)


def rewrite(program: Program) -> dict[str, int]:
    """Runs all passes on a traced program, in place; returns how often each one matched."""
    return {run.__name__: run(program) for run in PASSES}


def expected_counts(config: ModelConfig) -> dict[str, int]:
    """What `rewrite` returns for an OPT decoder; anything else means that a pass stopped matching."""
    return {"fuse_layer_norm": 2 * config.num_layers + config.final_norm, "fuse_head": 1}

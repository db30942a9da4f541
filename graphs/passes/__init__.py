"""Rewrite passes, and the order they run in for each target.

Each pass is one file: what it looks for, what it puts there, and how many it rewrote.
"""

from __future__ import annotations

from collections.abc import Callable

from graphs.contract import ModelConfig
from graphs.passes.attention import HEAD_DIM_MULTIPLE, fuse_attention
from graphs.passes.head import fuse_head
from graphs.passes.layer_norm import fuse_layer_norm
from graphs.passes.skip_layer_norm import fuse_skip_layer_norm
from graphs.program import Program

# Plain ONNX, for any conforming runtime; then ONNX Runtime's own operators on top.
_PORTABLE: tuple[Callable[[Program], int], ...] = (fuse_layer_norm, fuse_head)
PASSES = {
    "portable": _PORTABLE,
    "cpu": (*_PORTABLE, fuse_attention, fuse_skip_layer_norm),
}


def rewrite(program: Program, target: str = "portable") -> dict[str, int]:
    """Runs a target's passes on a traced program, in place; returns how often each one matched."""
    return {run.__name__: run(program) for run in PASSES[target]}


def expected_counts(config: ModelConfig, target: str = "portable") -> dict[str, int]:
    """What `rewrite` returns for an OPT decoder; anything else means that a pass stopped matching."""
    norms = 2 * config.num_layers + (config.final_norm and config.norm_first)
    # The first norm normalizes the embeddings, unless norms follow the branches. Where the embedding is
    # narrow, the projection and the positions are a branch and a residual like any other.
    joined = norms - 1 if config.norm_first and config.embedding_dim is None else norms
    attentions = 0 if config.head_dim % HEAD_DIM_MULTIPLE else config.num_layers
    counts = {
        "fuse_layer_norm": 2 * config.num_layers + config.final_norm,
        "fuse_head": 1,
        "fuse_attention": attentions,
        "fuse_skip_layer_norm": joined,
    }
    return {run.__name__: counts[run.__name__] for run in PASSES[target]}

"""Rewrite passes, and the order they run in for each target.

Each pass is one file: what it looks for, what it puts there, and how many it rewrote.
"""

from __future__ import annotations

from collections.abc import Callable

from graphs.contract import ModelConfig
from graphs.passes.attention import HEAD_DIM_MULTIPLE, fuse_attention
from graphs.passes.bias import fuse_bias
from graphs.passes.half_tables import halve_positions
from graphs.passes.head import fuse_head
from graphs.passes.int4 import quantize_layers_int4, quantize_tables_int4
from graphs.passes.int8 import quantize_layers_int8, quantize_tables_int8
from graphs.passes.layer_norm import fuse_layer_norm
from graphs.passes.token_layout import keep_rows
from graphs.passes.token_lookup import separate_lookup
from graphs.program import Program
from graphs.quantization import FLOAT, Scheme

Pass = Callable[[Program], int]

# Plain ONNX, for any conforming runtime; then ONNX Runtime's own operators on top. Its
# SkipLayerNormalization is not among them: one node for two, but it takes five times as long as both.
_PORTABLE: tuple[Pass, ...] = (fuse_layer_norm, fuse_head)
_FUSED: tuple[Pass, ...] = (*_PORTABLE, fuse_attention)
_LAYERS: dict[str, tuple[Pass, ...]] = {
    "fp32": (fuse_bias,),
    "int8": (quantize_layers_int8,),
    "int4": (quantize_layers_int4,),
}
_TABLES: dict[str, tuple[Pass, ...]] = {
    "fp32": (separate_lookup,),
    "int8": (quantize_tables_int8,),
    "int4": (quantize_tables_int4,),
}


def passes(target: str = "portable", scheme: Scheme = FLOAT) -> tuple[Pass, ...]:
    """The passes of a target and of how its weights are stored, in order."""
    if target == "portable":
        return _PORTABLE
    layout = (keep_rows, halve_positions) if scheme.quantized else ()
    return (*_FUSED, *layout, *_LAYERS[scheme.layers], *_TABLES[scheme.tables])


def rewrite(program: Program, target: str = "portable", scheme: Scheme = FLOAT) -> dict[str, int]:
    """Runs the passes on a traced program, in place; returns how often each one matched."""
    return {run.__name__: run(program) for run in passes(target, scheme)}


def expected_counts(
    config: ModelConfig, target: str = "portable", scheme: Scheme = FLOAT
) -> dict[str, int]:
    """What `rewrite` returns for an OPT decoder; anything else means that a pass stopped matching."""
    attentions = 0 if config.head_dim % HEAD_DIM_MULTIPLE else config.num_layers
    products, tables = 4 * config.num_layers, 2
    counts = {
        "fuse_layer_norm": 2 * config.num_layers + config.final_norm,
        "fuse_head": 1,
        "fuse_attention": attentions,
        "fuse_bias": products if config.use_bias else 0,
        "separate_lookup": int(config.tied_head),
        "keep_rows": attentions,
        "halve_positions": 1,
        "quantize_layers_int8": products,
        "quantize_layers_int4": products,
        "quantize_tables_int8": tables,
        "quantize_tables_int4": tables,
    }
    return {run.__name__: counts[run.__name__] for run in passes(target, scheme)}

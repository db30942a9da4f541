"""Rewrite passes, and the order they run in for each target.

Each pass is one file: what it looks for, what it puts there, and how many it rewrote.
"""

from __future__ import annotations

from collections.abc import Callable

from graphs.contract import ModelConfig
from graphs.passes.attention import HEAD_DIM_MULTIPLE, fuse_attention
from graphs.passes.best_logits import rank_logits
from graphs.passes.bias import fuse_bias
from graphs.passes.blocks import block_layers_int4, block_layers_int8
from graphs.passes.device_inputs import take_positions
from graphs.passes.half_floats import narrow_to_bf16, narrow_to_fp16
from graphs.passes.half_tables import halve_positions
from graphs.passes.head import fuse_head
from graphs.passes.int4 import quantize_layers_int4, quantize_tables_int4
from graphs.passes.int8 import quantize_layers_int8, quantize_tables_int8
from graphs.passes.layer_norm import fuse_layer_norm
from graphs.passes.skip_norm import fuse_skip_norm
from graphs.passes.token_layout import keep_rows
from graphs.passes.token_lookup import separate_lookup
from graphs.program import Program
from graphs.quantization import FLOAT, Scheme

Pass = Callable[[Program], int]

# Plain ONNX, for any conforming runtime; then ONNX Runtime's own operators on top. Its
# SkipLayerNormalization is for GPUs alone: on CPUs it takes five times as long as what it replaces.
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
# The biases that SkipLayerNormalization adds are no longer there for the products.
_CUDA: tuple[Pass, ...] = (*_FUSED, keep_rows, take_positions, fuse_skip_norm)
_CUDA_LAYERS: dict[str, tuple[Pass, ...]] = {
    "fp16": (),
    "bf16": (),
    "int8": (block_layers_int8,),
    "int4": (block_layers_int4,),
}
_CUDA_FLOATS: dict[str, Pass] = {"fp16": narrow_to_fp16, "bf16": narrow_to_bf16}


def passes(target: str = "portable", scheme: Scheme = FLOAT) -> tuple[Pass, ...]:
    """The passes of a target and of how its weights are stored, in order."""
    if target == "portable":
        return _PORTABLE
    if target == "cuda":
        return (*_CUDA, *_CUDA_LAYERS[scheme.layers], _CUDA_FLOATS[scheme.floats], rank_logits)
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
    norms = 2 * config.num_layers + config.final_norm
    floats = _float_weights(config) - (products if scheme.quantized else 0)
    counts = {
        "fuse_layer_norm": norms,
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
        "take_positions": attentions,
        "fuse_skip_norm": norms,
        "block_layers_int8": products,
        "block_layers_int4": products,
        "narrow_to_fp16": floats,
        "narrow_to_bf16": floats,
        "rank_logits": 1,
    }
    return {run.__name__: counts[run.__name__] for run in passes(target, scheme)}


def _float_weights(config: ModelConfig) -> int:
    """How many weights a model has: of its layers, tables, projections and last norm."""
    norm = 2 * config.norm_affine
    layer = 4 * (1 + config.use_bias) + 2 * norm
    outside = 2 + (not config.tied_head) + (0 if config.embedding_dim is None else 2)
    return config.num_layers * layer + outside + norm * config.final_norm

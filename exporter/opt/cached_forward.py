"""The forward pass over a KV cache: what the exporter traces and `OPTCausalLM.generate` runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from exporter.opt.backbone import OPTBackbone
from exporter.opt.keras_backend import keras
from exporter.opt.layers import MASKED, SEEN, CacheStep

ops = keras.ops


def cached_forward(
    backbone: OPTBackbone,
    input_ids: Any,
    past_lengths: Any,
    output_positions: Any,
    caches: Sequence[tuple[Any, Any]],
) -> tuple[Any, Any, list[tuple[Any, Any]]]:
    """Appends new tokens to each row of a cache; the graph contract in Keras operations.

    Args:
        backbone: the model.
        input_ids: int [batch, sequence], right-padded.
        past_lengths: int32 [batch], tokens already in the cache.
        output_positions: int [outputs], the new tokens whose logits are wanted, counted over batch
            times sequence.
        caches: key and value [batch, heads, capacity, head_dim] of each layer.

    Returns:
        Logits float32 [outputs, vocabulary], hidden states float32 [batch, sequence, embedding], and
        the caches with the new tokens written.
    """
    single = input_ids.shape[1] == 1
    sequence = 1 if single else ops.shape(input_ids)[1]
    batch = ops.shape(input_ids)[0]
    positions = past_lengths[:, None] + ops.arange(sequence, dtype="int32")[None, :]
    step = _plan_step(backbone, batch, sequence, positions, past_lengths, caches[0][0])

    x = backbone.embeddings.call_with_positions(
        ops.reshape(input_ids, (-1,)), ops.reshape(positions, (-1,))
    )
    presents = []
    for layer, past in zip(backbone.transformer_layers, caches, strict=True):
        x, present = layer.call_with_cache(x, past, step)
        presents.append(present)
    x = backbone.finish(x)

    # A plain gather: Keras's own also serves negative indices, at five nodes in the graph.
    logits = backbone.logits(tf.gather(x, output_positions))
    width = backbone.model_config.embedding_width
    hidden_states = ops.reshape(x, (batch, sequence, width))
    return ops.cast(logits, "float32"), ops.cast(hidden_states, "float32"), presents


def _plan_step(
    backbone: OPTBackbone,
    batch: Any,
    sequence: Any,
    positions: Any,
    past_lengths: Any,
    key_cache: Any,
) -> CacheStep:
    capacity = ops.shape(key_cache)[2]
    total = ops.minimum(ops.max(past_lengths) + sequence, capacity)
    seen = ops.arange(total, dtype="int32")[None, None, None, :] <= positions[:, None, :, None]
    # Padding that would lie past the end goes to the last slot, which callers keep spare for it.
    slots = ops.minimum(positions, capacity - 1)
    heads = backbone.num_heads
    shape = (batch, heads, sequence)
    indices = ops.stack(
        [
            ops.broadcast_to(ops.arange(batch, dtype="int32")[:, None, None], shape),
            ops.broadcast_to(ops.arange(heads, dtype="int32")[None, :, None], shape),
            ops.broadcast_to(slots[:, None, :], shape),
        ],
        axis=-1,
    )
    return CacheStep(batch, sequence, total, indices, ops.where(seen, SEEN, MASKED))

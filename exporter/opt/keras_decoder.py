"""Runs a Keras OPT backbone under the runtime's generation loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from exporter.opt.backbone import OPTBackbone
from exporter.opt.cached_forward import cached_forward
from runtime.decoder import StepOutput
from runtime.wanted_outputs import WantedOutputs, last_tokens


class KerasCache:
    """A KV cache as TensorFlow tensors [batch, heads, capacity, head_dim], key and value by layer."""

    def __init__(self, backbone: OPTBackbone, batch: int, capacity: int) -> None:
        config = backbone.model_config
        # One spare slot, where the forward pass writes padding that would lie past the end.
        shape = (batch, config.num_heads, capacity + 1, config.head_dim)
        self.capacity = capacity
        self.lengths = np.zeros(batch, np.int32)
        zeros = tf.zeros(shape, backbone.compute_dtype)
        self.layers: Any = [(zeros, zeros) for _ in range(config.num_layers)]

    def copy_rows(
        self, source: KerasCache, rows: np.ndarray, targets: np.ndarray, first: int = 0
    ) -> None:
        """Copies rows; see `runtime.decoder.Cache.copy_rows`.

        `first` saves nothing here: tensors are not changed in place, so each copy is a whole one.
        """
        del first
        if not len(targets):
            return
        last = int(source.lengths[rows].max())
        if last > self.capacity:
            raise ValueError(f"a row of {last} tokens has no room in a cache of {self.capacity}")
        padding = [[0, 0], [0, 0], [0, self.capacity + 1 - last], [0, 0]]

        def copied(own: Any, other: Any) -> Any:
            values = tf.pad(tf.gather(other, rows)[:, :, :last], padding)
            return tf.tensor_scatter_nd_update(own, targets[:, None], values)

        self.layers = [
            tuple(copied(own, other) for own, other in zip(*pairs, strict=True))
            for pairs in zip(self.layers, source.layers, strict=True)
        ]
        self.lengths[targets] = source.lengths[rows]

    def release(self, row: int, *, clean: bool = False) -> None:
        """Empties a row; see `runtime.decoder.Cache.release`."""
        self.lengths[row] = 0
        if clean:
            targets = np.array([[row]])

            def cleaned(own: Any) -> Any:
                return tf.tensor_scatter_nd_update(own, targets, tf.zeros_like(own[row : row + 1]))

            self.layers = [tuple(cleaned(own) for own in pair) for pair in self.layers]


class KerasDecoder:
    """A `runtime.decoder.Decoder` over live Keras weights: new weights are seen at once.

    The forward pass is traced at the first call, for all batch sizes and lengths.
    """

    def __init__(self, backbone: OPTBackbone) -> None:
        self._backbone = backbone
        self.config = backbone.model_config
        self.block_tokens: int | None = None
        self.chunk_tokens = backbone.model_config.max_sequence_length
        self.spare_rows = 0
        self.keeps_slots = False
        ids = tf.TensorSpec([None, None], tf.int32)
        lengths, outputs = tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64)
        cache = tf.TensorSpec(
            [None, self.config.num_heads, None, self.config.head_dim], backbone.compute_dtype
        )
        caches = [(cache, cache)] * self.config.num_layers
        self._step = tf.function(
            lambda *inputs: cached_forward(self._backbone, *inputs),
            input_signature=[ids, lengths, outputs, caches],
        )

    def slot_capacity(self, tokens: int) -> int:
        """The capacity of the cache in which sequences of up to so many tokens run together."""
        return tokens

    def new_cache(self, batch: int, capacity: int) -> KerasCache:
        """An empty cache."""
        return KerasCache(self._backbone, batch, capacity)

    def append(
        self,
        cache: KerasCache,
        token_ids: np.ndarray,
        new_lengths: np.ndarray,
        *,
        first_row: int = 0,
        outputs: np.ndarray | None = None,
        hidden_states: bool = False,
        check: Callable[[], object] | None = None,
    ) -> StepOutput:
        """Appends tokens; see `runtime.decoder.Decoder.append`. `check` is called before the run."""
        if check is not None:
            check()
        batch, rows = len(cache.lengths), slice(first_row, first_row + len(token_ids))
        wanted, positions = None, last_tokens(new_lengths, token_ids.shape[1])
        if outputs is not None:
            taking, sequence = token_ids.shape
            wanted = WantedOutputs(outputs, taking, sequence, self.config.vocabulary_size)
            places, positions = wanted.places(slice(0, taking), slice(0, sequence))
        part = rows != slice(0, batch)
        layers = [tuple(t[rows] for t in pair) for pair in cache.layers] if part else cache.layers
        logits, hidden, layers = self._step(
            tf.constant(token_ids, tf.int32),
            tf.constant(cache.lengths[rows]),
            tf.constant(positions, tf.int64),
            layers,
        )
        if part:
            pairs = zip(cache.layers, layers, strict=True)
            layers = [tuple(map(_join(rows), olds, news)) for olds, news in pairs]
        if wanted is not None:
            found = logits.numpy()[: len(places)]
        elif part:
            found = np.zeros((batch, logits.shape[1]), np.float32)
            found[rows] = logits
        else:
            found = logits.numpy()
        cache.layers = layers
        cache.lengths[rows] += new_lengths.astype(np.int32)
        return StepOutput(found, hidden.numpy() if hidden_states else None)


def _join(rows: slice) -> Callable[[Any, Any], Any]:
    """What puts new rows in the place of old ones."""
    return lambda old, new: tf.concat([old[: rows.start], new, old[rows.stop :]], axis=0)

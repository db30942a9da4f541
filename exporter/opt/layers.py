"""The layers of an OPT decoder.

Each layer has `call`, the whole-sequence forward pass that training uses, and `call_with_cache`,
the pass over a KV cache that the exporter traces. In the second, tokens are laid out flat as
[batch * sequence, hidden], which leaves every dense layer a single matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from exporter.opt.keras_backend import keras
from exporter.opt.lora import QKV_PARTS, WHOLE, LowRankDense

ops = keras.ops
# Added to attention scores; finite, so that a row with nothing to see stays finite. NumPy's scalars
# keep their dtype, where a Python number would take that of `keras.config.floatx()`.
SEEN, MASKED = np.float32(0.0), np.float32(-1e9)


# The feed-forward activations that `graphs.contract.ACTIVATIONS` names.
_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": ops.relu,
    # Spelled out, because TensorFlow's own takes Erfc, which ONNX does not have.
    "gelu": lambda x: 0.5 * x * (1.0 + ops.erf(x * 2**-0.5)),
    "gelu_tanh": lambda x: ops.gelu(x, approximate=True),
    "silu": ops.silu,
}


def kernel_initializer() -> Any:
    """The initializer of all OPT kernels and embeddings."""
    return keras.initializers.TruncatedNormal(stddev=0.02)


def build_layer_norm(name: str, epsilon: float, affine: bool, dtype: Any) -> Any:
    """A layer normalization, with scale and offset where `affine`."""
    return keras.layers.LayerNormalization(
        epsilon=epsilon, center=affine, scale=affine, dtype=dtype, name=name
    )


def build_dense(
    name: str, units: int, use_bias: bool, dtype: Any, parts: Sequence[str] = WHOLE
) -> LowRankDense:
    """A dense layer without activation; `parts` names the parts of its output that LoRA can adapt."""
    return LowRankDense(
        units,
        parts,
        use_bias=use_bias,
        kernel_initializer=kernel_initializer(),
        dtype=dtype,
        name=name,
    )


@dataclass(frozen=True)
class CacheStep:
    """What all layers need to know of one pass over the cache; computed once.

    Attributes:
        batch, sequence: sizes of this pass (numbers or scalar tensors).
        total: cache slots in use after this pass, the longest row's; int32 scalar.
        scatter_indices: int32 [batch, heads, sequence, 3], where new keys and values are written.
        attention_bias: [batch, 1, sequence, total], 0 where a token may look and `MASKED` elsewhere.
    """

    batch: Any
    sequence: Any
    total: Any
    scatter_indices: Any
    attention_bias: Any


@keras.saving.register_keras_serializable(package="opt_onnx")
class OPTAttention(keras.layers.Layer):
    """Multi-head self-attention with one fused query-key-value projection.

    Args:
        num_heads: int. The number of attention heads.
        dropout: float. Dropout of the attention weights.
        use_bias: bool. Whether the projections have biases.
    """

    def __init__(
        self, num_heads: int, dropout: float = 0.0, use_bias: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # the bias stays float32 in narrow dtypes
        self.num_heads = num_heads
        self.dropout = dropout
        self.use_bias = use_bias
        self.softmax = keras.layers.Softmax(dtype="float32", name="softmax")
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape: Any) -> None:
        hidden_dim = input_shape[-1]
        self.head_dim = hidden_dim // self.num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = build_dense("qkv", 3 * hidden_dim, self.use_bias, self.dtype_policy, QKV_PARTS)
        self.output_dense = build_dense("output", hidden_dim, self.use_bias, self.dtype_policy)
        self.qkv.build(input_shape)
        self.output_dense.build(input_shape)
        self.built = True

    def _split_heads(self, x: Any, batch: Any, sequence: Any) -> list[Any]:
        """Query, key and value, each [batch, heads, sequence, head_dim]."""
        shape = (batch, sequence, self.num_heads, self.head_dim)
        parts = ops.split(self.qkv(x), 3, axis=-1)
        return [ops.transpose(ops.reshape(part, shape), (0, 2, 1, 3)) for part in parts]

    def _attend(self, query: Any, key: Any, value: Any, bias: Any, training: bool | None) -> Any:
        """Attention output [batch, sequence, heads, head_dim]; the softmax runs in float32."""
        scores = ops.matmul(query * self.scale, ops.transpose(key, (0, 1, 3, 2)))
        weights = self.softmax(ops.cast(scores, "float32") + bias)
        weights = self.dropout_layer(ops.cast(weights, value.dtype), training=training)
        return ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))

    def call(self, x: Any, bias: Any, training: bool | None = None) -> Any:
        """Args: x [batch, sequence, hidden]; bias [batch, 1, sequence, sequence]."""
        batch, sequence, hidden_dim = ops.shape(x)[0], ops.shape(x)[1], x.shape[-1]
        query, key, value = self._split_heads(x, batch, sequence)
        out = self._attend(query, key, value, bias, training)
        return self.output_dense(ops.reshape(out, (batch, sequence, hidden_dim)))

    def call_with_cache(
        self, x: Any, past: tuple[Any, Any], step: CacheStep
    ) -> tuple[Any, tuple[Any, Any]]:
        """Args: x [batch * sequence, hidden]; past: key and value cache. Returns both anew."""
        query, key, value = self._split_heads(x, step.batch, step.sequence)
        present = (
            ops.scatter_update(past[0], step.scatter_indices, key),
            ops.scatter_update(past[1], step.scatter_indices, value),
        )
        used_key, used_value = (cache[:, :, : step.total, :] for cache in present)
        out = self._attend(query, used_key, used_value, step.attention_bias, training=False)
        return self.output_dense(ops.reshape(out, (-1, x.shape[-1]))), present

    def compute_output_shape(self, input_shape: Any, *_: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
        }


@keras.saving.register_keras_serializable(package="opt_onnx")
class OPTDecoderLayer(keras.layers.Layer):
    """One OPT decoder layer: attention and feed-forward, each with a norm and a residual.

    Args:
        num_heads: int. The number of attention heads.
        intermediate_dim: int. The width of the feed-forward layer.
        dropout: float. Dropout of attention weights and of both residual branches.
        layer_norm_epsilon: float. Added to the variance in both norms.
        activation: string. The feed-forward activation, one of `graphs.contract.ACTIVATIONS`.
        norm_first: bool. Whether a norm stands before its branch, or after the residual.
        use_bias: bool. Whether the dense layers have biases.
        norm_affine: bool. Whether the norms have scales and offsets.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        dropout: float = 0.1,
        layer_norm_epsilon: float = 1e-5,
        activation: str = "relu",
        norm_first: bool = True,
        use_bias: bool = True,
        norm_affine: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # the bias stays float32 in narrow dtypes
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.layer_norm_epsilon = layer_norm_epsilon
        self.activation = activation
        self.norm_first = norm_first
        self.use_bias = use_bias
        self.norm_affine = norm_affine

    def build(self, input_shape: Any) -> None:
        hidden_dim, dtype, bias = input_shape[-1], self.dtype_policy, self.use_bias
        norm = (self.layer_norm_epsilon, self.norm_affine, dtype)
        self.attention_norm = build_layer_norm("attention_norm", *norm)
        self.attention = OPTAttention(self.num_heads, self.dropout, bias, dtype=dtype, name="attention")
        self.feed_forward_norm = build_layer_norm("feed_forward_norm", *norm)
        self.intermediate_dense = build_dense("intermediate", self.intermediate_dim, bias, dtype)
        self.output_dense = build_dense("output", hidden_dim, bias, dtype)
        self.dropout_layer = keras.layers.Dropout(self.dropout, dtype=dtype, name="dropout")
        for layer in (self.attention_norm, self.attention, self.feed_forward_norm):
            layer.build(input_shape)
        self.intermediate_dense.build(input_shape)
        self.output_dense.build((*input_shape[:-1], self.intermediate_dim))
        self.built = True

    def call(self, x: Any, bias: Any, training: bool | None = None) -> Any:
        """Args: x [batch, sequence, hidden]; bias [batch, 1, sequence, sequence]."""
        attended = self.attention(self._before(self.attention_norm, x), bias, training=training)
        x = self._after(self.attention_norm, x + self.dropout_layer(attended, training=training))
        fed = self.dropout_layer(self._feed_forward(x), training=training)
        return self._after(self.feed_forward_norm, x + fed)

    def call_with_cache(
        self, x: Any, past: tuple[Any, Any], step: CacheStep
    ) -> tuple[Any, tuple[Any, Any]]:
        """Args: x [batch * sequence, hidden]; past: key and value cache. Returns both anew."""
        attended, present = self.attention.call_with_cache(
            self._before(self.attention_norm, x), past, step
        )
        x = self._after(self.attention_norm, x + attended)
        return self._after(self.feed_forward_norm, x + self._feed_forward(x)), present

    @property
    def dense_layers(self) -> dict[str, LowRankDense]:
        """The layers that LoRA can adapt, by their path in this one."""
        return {
            "attention/qkv": self.attention.qkv,
            "attention/output": self.attention.output_dense,
            "intermediate": self.intermediate_dense,
            "output": self.output_dense,
        }

    def _before(self, norm: Any, x: Any) -> Any:
        return norm(x) if self.norm_first else x

    def _after(self, norm: Any, x: Any) -> Any:
        return x if self.norm_first else norm(x)

    def _feed_forward(self, x: Any) -> Any:
        inner = self.intermediate_dense(self._before(self.feed_forward_norm, x))
        return self.output_dense(_ACTIVATIONS[self.activation](inner))

    def compute_output_shape(self, input_shape: Any, *_: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "activation": self.activation,
            "norm_first": self.norm_first,
            "use_bias": self.use_bias,
            "norm_affine": self.norm_affine,
        }


def check_positions(length: int | None, positions: int, name: str = "the length of token_ids") -> None:
    """Raises `ValueError` if a sequence is longer than the position table; `None` is not known yet."""
    if length is not None and length > positions:
        raise ValueError(
            f"{name} is {length}, more than the model's {positions} positions; "
            f"make it {positions} or less"
        )


def build_token_table(name: str, vocabulary_size: int, width: int, dtype: Any) -> Any:
    """A table [vocabulary, width] that embeds tokens and, reversed, gives their logits."""
    return keras.layers.ReversibleEmbedding(
        vocabulary_size,
        width,
        tie_weights=True,
        embeddings_initializer=kernel_initializer(),
        dtype=dtype,
        name=name,
    )


@keras.saving.register_keras_serializable(package="opt_onnx")
class OPTEmbedding(keras.layers.Layer):
    """Token embedding plus learned position embedding.

    Args:
        vocabulary_size: int. Rows of the token table.
        max_sequence_length: int. Rows of the position table.
        hidden_dim: int. Width of the output and of the position table.
        embedding_dim: int. Width of the token table; where it is another one, a projection without
            bias leads to `hidden_dim`. By default `hidden_dim`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        max_sequence_length: int,
        hidden_dim: int,
        embedding_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.max_sequence_length = max_sequence_length
        self.hidden_dim = hidden_dim
        self.embedding_dim = embedding_dim
        dtype = self.dtype_policy
        self.token_embedding = build_token_table(
            "token_embedding", vocabulary_size, embedding_dim or hidden_dim, dtype
        )
        self.position_embedding = keras.layers.Embedding(
            max_sequence_length,
            hidden_dim,
            embeddings_initializer=kernel_initializer(),
            dtype=dtype,
            name="position_embedding",
        )
        self.project_in = None
        if embedding_dim is not None:
            self.project_in = build_dense("project_in", hidden_dim, False, dtype)

    def build(self, input_shape: Any) -> None:
        self.token_embedding.build(input_shape)
        self.position_embedding.build(input_shape)
        if self.project_in is not None:
            self.project_in.build((*input_shape, self.embedding_dim))
        self.built = True

    def call(self, token_ids: Any) -> Any:
        """Args: token_ids int [batch, sequence]. Returns [batch, sequence, hidden]."""
        check_positions(token_ids.shape[1], self.max_sequence_length)
        positions = ops.arange(ops.shape(token_ids)[1], dtype="int32")
        return self._project(self.token_embedding(token_ids)) + self.position_embedding(positions)

    def call_with_positions(self, token_ids: Any, positions: Any) -> Any:
        """Args: both int [tokens]; positions past the table (padding) take its last row."""
        positions = ops.minimum(positions, self.max_sequence_length - 1)
        # A plain gather: Keras's own also serves negative indices, at five nodes in the graph.
        tokens = tf.gather(ops.convert_to_tensor(self.token_embedding.embeddings), token_ids)
        places = tf.gather(ops.convert_to_tensor(self.position_embedding.embeddings), positions)
        tokens = self._project(ops.cast(tokens, self.compute_dtype))
        return tokens + ops.cast(places, self.compute_dtype)

    def _project(self, tokens: Any) -> Any:
        return tokens if self.project_in is None else self.project_in(tokens)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape, self.hidden_dim)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "max_sequence_length": self.max_sequence_length,
            "hidden_dim": self.hidden_dim,
            "embedding_dim": self.embedding_dim,
        }


@keras.saving.register_keras_serializable(package="opt_onnx")
class CausalBias(keras.layers.Layer):
    """Turns a padding mask into the attention bias of a whole sequence."""

    def call(self, padding_mask: Any) -> Any:
        """Args: padding_mask [batch, sequence]. Returns float32 [batch, 1, sequence, sequence]."""
        positions = ops.arange(ops.shape(padding_mask)[1], dtype="int32")
        causal = positions[None, :] <= positions[:, None]
        seen = ops.logical_and(causal[None], ops.cast(padding_mask, "bool")[:, None, :])
        return ops.where(seen, SEEN, MASKED)[:, None]

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], 1, input_shape[1], input_shape[1])

    def compute_output_spec(self, padding_mask: Any) -> Any:
        return keras.KerasTensor(self.compute_output_shape(padding_mask.shape), dtype="float32")

"""Keras's own layers run one after another, each weight read when it is used.

It is the training forward pass, which knows no cache. Peak memory is the largest weight and the
activations of all rows, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from exporter.opt.backbone import build_decoder_layer
from exporter.opt.keras_backend import keras, without_values
from exporter.opt.layers import MASKED, OPTDecoderLayer, build_layer_norm
from exporter.weight_names import TOKEN_TABLE, head_table
from exporter.weights import WeightSource, read_weight
from graphs.contract import ModelConfig

ops = keras.ops


def causal_bias(sequence: int) -> Any:
    """The attention bias of rows without padding, float32 [1, 1, sequence, sequence]."""
    seen = np.tri(sequence, dtype=bool)
    return ops.convert_to_tensor(np.where(seen, 0.0, MASKED).astype("float32")[None, None])


def read_tokens(source: WeightSource, token_ids: np.ndarray) -> np.ndarray:
    """Rows of the token table, float32 [rows, sequence, embedding]."""
    return _gather_rows(source, TOKEN_TABLE, token_ids)


def embed(config: ModelConfig, source: WeightSource, token_ids: np.ndarray) -> Any:
    """What the first layer takes, float32 [rows, sequence, hidden]."""
    tokens = read_tokens(source, token_ids)
    if config.embedding_dim is not None:
        tokens = ops.matmul(tokens, read_weight(source, "embeddings/project_in/kernel"))
    places = np.arange(token_ids.shape[1])
    return tokens + _gather_rows(source, "embeddings/position_embedding/embeddings", places)


class _ReadWhenUsed(keras.StatelessScope):
    """Within it, a layer's variables have the values that the source gives, read at each use.

    Args:
        source: gives the values.
        layer: whose variables.
        name: of the layer among the weights.
    """

    def __init__(self, source: WeightSource, layer: Any, name: str) -> None:
        super().__init__(initialize_variables=False)
        self._source = source
        self._names = {id(v): name + v.path.removeprefix(layer.name) for v in layer.variables}

    def get_current_value(self, variable: Any) -> Any:
        name = self._names.get(id(variable))
        return None if name is None else ops.convert_to_tensor(read_weight(self._source, name))


def layers(config: ModelConfig, source: WeightSource) -> Iterator[OPTDecoderLayer]:
    """Every decoder layer in turn, float32, to be called before the next is asked for.

    It is the same object each time. A call reads every weight once and keeps none.
    """
    with without_values():
        layer = build_decoder_layer(config, "transformer_layer", dropout=0.0, dtype="float32")
        layer.build((None, None, config.hidden_dim))
    for i in range(config.num_layers):
        with _ReadWhenUsed(source, layer, f"transformer_layer_{i}"):
            yield layer


def normalize(config: ModelConfig, source: WeightSource, x: Any) -> Any:
    """The final norm, where the model has one."""
    if not config.final_norm:
        return x
    with without_values():
        norm = build_layer_norm("layer_norm", config.layer_norm_epsilon, config.norm_affine, "float32")
        norm.build(x.shape)
    with _ReadWhenUsed(source, norm, "layer_norm"):
        return norm(x)


def project_out(config: ModelConfig, source: WeightSource, x: Any) -> Any:
    """The projection to the embedding's width, where the model has one."""
    if config.embedding_dim is None:
        return x
    return ops.matmul(x, read_weight(source, "project_out/kernel"))


def logits(config: ModelConfig, source: WeightSource, token_ids: np.ndarray) -> np.ndarray:
    """Logits of every token, float32 [rows, sequence, vocabulary]."""
    x = embed(config, source, token_ids)
    bias = causal_bias(token_ids.shape[1])
    for layer in layers(config, source):
        x = layer(x, bias)
    x = project_out(config, source, normalize(config, source, x))
    blocks = source.blocks(head_table(config))
    return np.concatenate([ops.convert_to_numpy(ops.matmul(x, block.T)) for block in blocks], axis=-1)


def _gather_rows(source: WeightSource, name: str, rows: np.ndarray) -> np.ndarray:
    """Rows of a table that is read in blocks."""
    result = np.empty((*rows.shape, source.shapes[name][1]), np.float32)
    start = 0
    for block in source.blocks(name):
        here = (rows >= start) & (rows < start + len(block))
        result[here] = block[rows[here] - start]
        start += len(block)
    return result

"""Calibration: what values the inputs of a model's dense layers take on a small text."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import numpy as np

from exporter import layer_walk
from exporter.errors import ExportError
from exporter.opt.keras_backend import keras
from exporter.opt.layers import OPTDecoderLayer
from exporter.progress import Progress
from exporter.quantization.activations import ActivationStatistics
from exporter.weight_names import head_table
from exporter.weights import WeightSource
from graphs.contract import ModelConfig
from runtime.tokenization.tokenizer import Tokenizer

ops = keras.ops
ROW_TOKENS = 256  # at most, of a row of calibration text
MOST_TOKENS = 2048  # of a calibration text that is used
FEWEST_TOKENS = 64  # fewer say too little about the range of values
DEFAULT_TEXT = "calibration.txt"


def calibration_tokens(
    tokenizer: Tokenizer | None, text: str | None, config: ModelConfig
) -> np.ndarray:
    """Tokens to calibrate with, int64 [rows, sequence]; each row begins with the start token.

    Of a long text, pieces from all over it are taken.

    Args:
        tokenizer: of the model; without one, the tokens are random.
        text: the text, by default one that comes with the package.
        config: its positions bound a row.

    Raises:
        ExportError: if the text is too short, or is given and there is no tokenizer.
    """
    if tokenizer is None:
        if text is not None:
            raise ExportError(
                "this model has no tokenizer, which a calibration text needs; export it without one"
            )
        return _random_tokens(config)
    if text is None:
        text = resources.files(__package__).joinpath(DEFAULT_TEXT).read_text(encoding="utf-8")
    tokens = np.array(tokenizer.encode(text), np.int64)
    if len(tokens) < FEWEST_TOKENS:
        raise ExportError(
            f"the calibration text has {len(tokens)} tokens; at least {FEWEST_TOKENS} are needed, "
            "some hundreds are better: give a longer text"
        )
    first = tokenizer.end_token_id if tokenizer.start_token_id is None else tokenizer.start_token_id
    pieces = _pieces(tokens, min(ROW_TOKENS, config.max_sequence_length) - 1)
    return np.pad(pieces, ((0, 0), (1, 0)), constant_values=first)


def _pieces(tokens: np.ndarray, longest: int) -> np.ndarray:
    """Equally long runs of the tokens, at most `longest` each, evenly spread; [rows, length]."""
    rows = -(-len(tokens) // longest)
    length = len(tokens) // rows
    runs = tokens[: rows * length].reshape(rows, length)
    most = max(1, MOST_TOKENS // (length + 1))
    return runs if rows <= most else runs[np.linspace(0, rows - 1, most).round().astype(int)]


def _random_tokens(config: ModelConfig) -> np.ndarray:
    length = min(ROW_TOKENS, config.max_sequence_length)
    rows = -(-MOST_TOKENS // 2 // length)
    return np.random.default_rng(0).integers(0, config.vocabulary_size, (rows, length))


def calibrate(
    config: ModelConfig, source: WeightSource, token_ids: np.ndarray, progress: Progress
) -> dict[str, ActivationStatistics]:
    """Statistics of every dense layer's input, by Keras's layers with weights read one layer at a time.

    Args:
        config: sizes and switches of the model.
        source: its weights.
        token_ids: int [rows, sequence], rows without padding.
        progress: told how many bytes of the layers' weights are done.

    Returns:
        By the name of the weight that the input is multiplied with: a kernel, or the head's table.
    """
    sizes = {name: 4 * math.prod(shape) for name, shape in source.shapes.items()}
    names = [f"transformer_layer_{i}" for i in range(config.num_layers)]
    layer_bytes = sum(size for name, size in sizes.items() if name.startswith(f"{names[0]}/"))
    progress.phase(f"Calibrating with {token_ids.size} tokens", layer_bytes * config.num_layers)
    found: dict[str, _Accumulator] = {}

    def observe(name: str, values: Any) -> None:
        found.setdefault(name, _Accumulator()).add(ops.convert_to_numpy(values))

    if config.embedding_dim is not None:
        observe("embeddings/project_in/kernel", layer_walk.read_tokens(source, token_ids))
    x = layer_walk.embed(config, source, token_ids)
    bias = layer_walk.causal_bias(token_ids.shape[1])
    for name, layer in zip(names, layer_walk.layers(config, source), strict=True):
        with _observed(layer, name, observe):
            x = layer(x, bias)
        progress.advance(layer_bytes)
    hidden = layer_walk.normalize(config, source, x)
    if config.embedding_dim is not None:
        observe("project_out/kernel", hidden)
    observe(head_table(config), layer_walk.project_out(config, source, hidden))
    return {name: accumulator.statistics() for name, accumulator in found.items()}


@contextlib.contextmanager
def _observed(layer: OPTDecoderLayer, name: str, observe: Callable[[str, Any], None]) -> Iterator[None]:
    """Within it, every dense layer tells its input under its kernel's name before it computes."""

    def observing(kernel: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def observe_and_call(inputs: Any, **options: Any) -> Any:
            observe(kernel, inputs)
            return call(inputs, **options)

        return observe_and_call

    dense_layers: dict[str, Any] = layer.dense_layers
    try:
        for path, dense in dense_layers.items():
            dense.call = observing(f"{name}/{path}/kernel", dense.call)
        yield
    finally:
        for dense in dense_layers.values():
            del dense.call  # the class's own again


class _Accumulator:
    """Gathers statistics from pieces of an activation."""

    def __init__(self) -> None:
        self._minimum: Any = np.inf
        self._maximum: Any = -np.inf
        self._squares: Any = 0.0
        self._tokens = 0

    def add(self, values: np.ndarray) -> None:
        """Adds values [..., channels]."""
        values = values.reshape(-1, values.shape[-1])
        self._minimum = np.minimum(self._minimum, values.min(axis=0))
        self._maximum = np.maximum(self._maximum, values.max(axis=0))
        self._squares = self._squares + np.einsum("ij,ij->j", values, values, dtype=np.float64)
        self._tokens += len(values)

    def statistics(self) -> ActivationStatistics:
        """Of all that was added."""
        mean_square = (self._squares / self._tokens).astype(np.float32)
        return ActivationStatistics(self._minimum, self._maximum, mean_square)

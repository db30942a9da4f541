"""Verification of a written bundle: valid graphs, the contract, and logits equal to Keras's.

Keras's logits come from its own layers in the training forward pass, which knows no cache, with the
weights streamed through one layer at a time. ONNX Runtime's come from a process of its own that loads
the bundle as a server would. So neither needs the memory of a second model here.
"""

from __future__ import annotations

import enum
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import ExportError
from exporter.opt.backbone import build_decoder_layer
from exporter.opt.keras_backend import keras
from exporter.opt.layers import MASKED, build_layer_norm
from exporter.weights import WeightSource, read_weight
from graphs.checks import check_graph
from graphs.contract import ModelConfig
from graphs.manifest import Manifest, read_manifest

ops = keras.ops
TOLERANCE = 1e-3  # of the logits' standard deviation
SMALL_ENOUGH_BYTES = 2 * 1024**3  # larger models have their logits compared only when asked to
PROMPT_LENGTHS = (12, 7)
DECODE_STEPS = 4
TOKEN_TABLE = "embeddings/token_embedding/embeddings"


class Verify(enum.StrEnum):
    """How much of a bundle to verify: logits too, graphs and hashes only, or nothing."""

    FULL = "full"
    GRAPH = "graph"
    NONE = "none"


def verify_graphs(folder: Path) -> Manifest:
    """ONNX checker and contract check of both graphs, and the sizes and hashes of all files.

    Raises:
        ExportError: saying what is wrong.
    """
    try:
        manifest = read_manifest(folder)
        manifest.check_files(folder, weights_hash=False)
        for phase, entry in manifest.graphs.items():
            check_graph(
                folder / entry.name,
                manifest.model,
                phase,
                manifest.weights.name,
                manifest.cache_dtype,
            )
    except Exception as error:  # the ONNX checker raises its own kinds
        raise ExportError(f"the written bundle failed verification: {error}") from error
    return manifest


@dataclass(frozen=True)
class LogitsComparison:
    """What `verify_logits` found.

    Attributes:
        difference: the maximum absolute one over the standard deviation of Keras's logits.
        peak_memory_bytes: of the process that ran the bundle.
    """

    difference: float
    peak_memory_bytes: int


def verify_logits(folder: Path, config: ModelConfig, source: WeightSource) -> LogitsComparison:
    """Compares the bundle's logits with Keras's on a probe of two rows of different lengths.

    Raises:
        ExportError: if the difference exceeds `TOLERANCE`, or the bundle cannot be run.
    """
    longest = min(max(PROMPT_LENGTHS) + DECODE_STEPS, config.max_sequence_length)
    steps = min(DECODE_STEPS, longest - 1)
    lengths = [min(length, longest - steps) for length in PROMPT_LENGTHS]
    generator = np.random.default_rng(0)
    token_ids = generator.integers(0, config.vocabulary_size, (len(lengths), longest))
    expected = _keras_logits(config, source, token_ids)
    wanted = np.stack(
        [expected[i, n - 1 : n + steps] for i, n in enumerate(lengths)]
    )  # [rows, 1 + steps, vocabulary]
    found, peak_memory = _bundle_logits(folder, token_ids, lengths, steps)
    difference = float(np.abs(wanted - found).max() / wanted.std())
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the written bundle failed verification: its logits differ from Keras's by "
            f"{difference:.2e} of their standard deviation; at most {TOLERANCE} is allowed"
        )
    return LogitsComparison(difference, peak_memory)


def _bundle_logits(
    folder: Path, token_ids: np.ndarray, lengths: list[int], steps: int
) -> tuple[np.ndarray, int]:
    """What a serving process computes, float32 [rows, 1 + steps, vocabulary]; its peak memory."""
    request = {"token_ids": token_ids.tolist(), "prompt_lengths": lengths, "steps": steps}
    result = subprocess.run(
        [sys.executable, "-m", "runtime.probe", str(folder)],
        input=json.dumps(request).encode(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
        check=False,
    )
    if result.returncode:
        told = result.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise ExportError(f"the written bundle failed verification: it does not run. {told[-1]}")
    with np.load(io.BytesIO(result.stdout), allow_pickle=False) as answer:
        return answer["logits"], int(answer["peak_memory_bytes"])


def _keras_logits(config: ModelConfig, source: WeightSource, token_ids: np.ndarray) -> np.ndarray:
    """Logits [rows, sequence, vocabulary] by Keras's layers, one layer's weights at a time."""
    sequence = token_ids.shape[1]
    x = _embed(config, source, token_ids)
    bias = ops.convert_to_tensor(
        np.where(np.tri(sequence, dtype=bool), 0.0, MASKED).astype("float32")[None, None]
    )
    layer = build_decoder_layer(config, "transformer_layer", dropout=0.0, dtype="float32")
    layer.build(x.shape)
    for i in range(config.num_layers):
        for variable in layer.variables:
            suffix = variable.path.removeprefix("transformer_layer/")
            variable.assign(read_weight(source, f"transformer_layer_{i}/{suffix}"))
        x = layer(x, bias)
    if config.final_norm:
        x = _normalize(config, source, x)
    if config.embedding_dim is not None:
        x = ops.matmul(x, read_weight(source, "project_out/kernel"))
    head = TOKEN_TABLE if config.tied_head else "head/embeddings"
    parts = [ops.convert_to_numpy(ops.matmul(x, block.T)) for block in source.blocks(head)]
    return np.concatenate(parts, axis=-1)


def _embed(config: ModelConfig, source: WeightSource, token_ids: np.ndarray) -> Any:
    tokens = _gather_rows(source, TOKEN_TABLE, token_ids)
    if config.embedding_dim is not None:
        tokens = ops.matmul(tokens, read_weight(source, "embeddings/project_in/kernel"))
    places = np.arange(token_ids.shape[1])
    return tokens + _gather_rows(source, "embeddings/position_embedding/embeddings", places)


def _normalize(config: ModelConfig, source: WeightSource, x: Any) -> Any:
    norm = build_layer_norm("layer_norm", config.layer_norm_epsilon, config.norm_affine, "float32")
    norm.build(x.shape)
    for variable in norm.variables:
        variable.assign(read_weight(source, variable.path))
    return norm(x)


def _gather_rows(source: WeightSource, name: str, rows: np.ndarray) -> np.ndarray:
    """Rows of a table that is read in blocks."""
    result = np.empty((*rows.shape, source.shapes[name][1]), np.float32)
    start = 0
    for block in source.blocks(name):
        here = (rows >= start) & (rows < start + len(block))
        result[here] = block[rows[here] - start]
        start += len(block)
    return result

"""The files of checkpoints: configurations, and weights written as they come, a piece at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from exporter.checkpoints.weight_map import BoundTarget
from graphs.contract import ModelConfig

SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16"}


def hugging_face_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """`config.json` of transformers' `OPTForCausalLM`."""
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_dim,
        "word_embed_proj_dim": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "ffn_dim": config.intermediate_dim,
        "max_position_embeddings": config.max_sequence_length,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "dtype": dtype,
    }


def keras_config(config: ModelConfig) -> dict[str, Any]:
    """`config.json` of a keras-hub preset."""
    policy = {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": "float32"},  # of the computation; weights are cast to it when loaded
        "registered_name": None,
    }
    sizes = config.to_dict()
    del sizes["layer_norm_epsilon"]  # keras-hub's is fixed
    return {
        "module": "keras_hub.src.models.opt.opt_backbone",
        "class_name": "OPTBackbone",
        "config": {
            "name": "opt_backbone",
            "trainable": True,
            "dtype": policy,
            **sizes,
            "dropout": 0.1,
        },
        "registered_name": "keras_hub>OPTBackbone",
    }


def write_safetensors(
    path: Path,
    targets: Iterable[BoundTarget],
    dtype: str,
    pieces: Iterable[tuple[str, np.ndarray]],
) -> None:
    """The header first, from the shapes alone, then the values in the same order.

    Follows https://github.com/huggingface/safetensors#format.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for source in (source for target in targets for source in target.sources):
        begin, end = end, end + int(np.prod(source.shape)) * np.dtype(dtype).itemsize
        header[source.name] = {
            "dtype": SAFETENSORS_NAMES[dtype],
            "shape": source.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values begin aligned
    with path.open("wb") as file:
        data_start = file.write(len(text).to_bytes(8, "little") + text)
        for name, values in pieces:
            begin, end = header[name]["data_offsets"]
            assert begin <= file.tell() - data_start < end, name
            file.write(np.ascontiguousarray(values).data)


def write_h5(
    path: Path,
    targets: Iterable[BoundTarget],
    dtype: str,
    pieces: Iterable[tuple[str, np.ndarray]],
) -> None:
    """All datasets first, from the shapes alone, then their rows as they come."""
    with h5py.File(path, "w") as file:
        written: dict[str, int] = {}
        for source in (source for target in targets for source in target.sources):
            file.create_dataset(source.name, source.shape, dtype)
            written[source.name] = 0
        for name, values in pieces:
            start = written[name]
            file[name][start : start + len(values)] = values
            written[name] = start + len(values)

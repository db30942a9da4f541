"""Small presets that are whole, in each format: what hostile ones and fuzzers begin with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from exporter.checkpoints.formats import HUGGING_FACE, KERAS_PRESET
from exporter.checkpoints.weight_map import bind_names
from exporter.checkpoints.writers import FileTensor, write_weights
from exporter.presets.hugging_face_config import write_hugging_face_config
from exporter.presets.keras_config import backbone_config, dtype_policy, serialized
from graphs.contract import ModelConfig
from runtime.tokenization.tokenizer import byte_alphabet
from tests.exporter.torch_files import write_torch_file

TINY = ModelConfig(
    vocabulary_size=264,
    num_layers=2,
    num_heads=2,
    hidden_dim=8,
    intermediate_dim=12,
    max_sequence_length=16,
)
VOCABULARY = {
    token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *byte_alphabet(), "he", "hel"])
}
MERGES = "#version: 0.2\nh e\nhe l\n"
FORMATS = ("safetensors", "shards", "torch", "h5")
_STEP = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def tensors(layout: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of the tiny model by their names in a file of the layout."""
    generator = np.random.default_rng(seed)
    weight_map = KERAS_PRESET if layout == "keras" else HUGGING_FACE
    return {
        source.name: generator.normal(0, 0.2, source.shape).astype(np.float32)
        for target in bind_names(weight_map, TINY)
        for source in target.sources
    }


def write_preset(folder: Path, kind: str) -> Path:
    """A whole preset with a tokenizer.

    Args:
        folder: to make.
        kind: one of `FORMATS`.
    """
    folder.mkdir(parents=True)
    if kind == "h5":
        _write_keras_files(folder)
        _write(folder, "keras", tensors("keras"))
        return folder
    write_json(folder / "config.json", write_hugging_face_config(TINY, "float32"))
    write_json(folder / "vocab.json", VOCABULARY)
    (folder / "merges.txt").write_text(MERGES, encoding="utf-8")
    values = tensors("huggingface")
    if kind == "torch":
        write_torch_file(folder / "pytorch_model.bin", values)
    else:
        _write(folder, "huggingface", values, 9000 if kind == "shards" else None)
    return folder


def write_json(path: Path, value: object) -> None:
    """Writes JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")


def tokenizer_json() -> dict[str, object]:
    """A `tokenizer.json` that is not OPT's own only in that `</s>` may stand within words."""
    added = [
        {"id": VOCABULARY[token], "content": token, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for token in ("<s>", "<pad>", "</s>")
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _STEP,
        "post_processor": None,
        "decoder": _STEP,
        "model": {"type": "BPE", "vocab": VOCABULARY, "merges": [["h", "e"], ["he", "l"]]},
    }


def _write(folder: Path, layout: str, values: dict[str, np.ndarray], shard: int | None = None) -> None:
    files = [FileTensor(name, array.shape, array.dtype) for name, array in values.items()]
    write_weights(folder, layout, files, iter(values.items()), shard)


def _write_keras_files(folder: Path) -> None:
    policy = dtype_policy("float32")
    write_json(folder / "config.json", backbone_config(TINY, dtype=policy))
    write_json(folder / "tokenizer.json", serialized("OPTTokenizer", {"sequence_length": None}))
    preprocessor = {"sequence_length": 16, "add_start_token": True, "add_end_token": True}
    write_json(folder / "preprocessor.json", serialized("OPTCausalLMPreprocessor", preprocessor))
    assets = folder / "assets" / "tokenizer"
    assets.mkdir(parents=True)
    write_json(assets / "vocabulary.json", VOCABULARY)
    (assets / "merges.txt").write_text(MERGES, encoding="utf-8")

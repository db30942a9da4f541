"""Reads a preset as an export does, up to the point where TensorFlow would come in."""

from __future__ import annotations

import contextlib
from pathlib import Path

from exporter.checkpoints.finite_blocks import finite_blocks
from exporter.presets.folder import PresetFolder, read_preset
from runtime.tokenization.tokenizer import Tokenizer


def read_whole_preset(folder: Path) -> int:
    """Reads configuration, tokenizer and all weights; returns the bytes of the weights."""
    preset = read_preset(folder)
    if preset.tokenizer_files is not None:
        use_tokenizer(Tokenizer.from_files(preset.tokenizer_files))
    return read_weights(preset)


def use_tokenizer(tokenizer: Tokenizer) -> None:
    """Encodes and decodes texts that any tokenizer is to manage."""
    for text in ("", "hello hello", "a b  c</s>", "é\u2028\U0001f600" * 3, "a" * 200):
        tokenizer.decode(tokenizer.encode(text))


def read_weights(preset: PresetFolder) -> int:
    """Reads all weights."""
    reader, targets = preset.open_weights()
    with contextlib.closing(reader):
        return sum(
            block.nbytes
            for target in targets
            for block in finite_blocks(target.blocks(reader), f"{target.name} of {preset.folder}")
        )

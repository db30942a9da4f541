"""The same model in the formats that the compared systems read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from bench.make_checkpoint import FORMATS, HUGGING_FACE_FORMAT, write_checkpoint
from exporter.presets.folder import read_preset
from graphs.contract import ModelConfig
from graphs.manifest import read_manifest

BUNDLE = "bundle"


@dataclass(frozen=True)
class CheckpointSet:
    """One model: its sizes, and the folder of each kind, `"huggingface"`, `"keras"`, `"bundle"`."""

    config: ModelConfig
    folders: dict[str, Path]


def make_checkpoints(
    config: ModelConfig,
    folder: Path,
    kinds: Collection[str],
    seed: int,
    *,
    deviation: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Writes the checkpoints that `open_checkpoints` needs for these kinds, of random weights.

    Args:
        config: sizes of the model.
        folder: gets a folder for each format.
        kinds: that are wanted; a bundle is exported from the Hugging Face folder.
        seed: of the weights.
        deviation: see `bench.make_checkpoint.write_checkpoint`.
        progress: told what is being done.
    """
    for format in _formats(kinds):
        progress(f"writing random weights as {format}")
        if deviation is None:
            write_checkpoint(config, folder / format, format=format, seed=seed)
        else:
            write_checkpoint(config, folder / format, format=format, seed=seed, deviation=deviation)


def open_checkpoints(
    folder: Path,
    kinds: Collection[str],
    bundle: Path,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> CheckpointSet:
    """Finds the checkpoints of these kinds; exports the bundle where it is wanted and not there.

    Args:
        folder: has a folder for each format.
        kinds: that are wanted.
        bundle: where the bundle is or is to be.
        progress: told what is being done.

    Raises:
        ValueError: if one is missing, or they are not of one size.
    """
    folders = {format: folder / format for format in _formats(kinds)}
    missing = [path for path in folders.values() if not path.is_dir()]
    if missing:
        raise ValueError(
            f"{missing[0]} is missing; make it with: python -m bench.make_checkpoint --shape NAME "
            f"--format {missing[0].name} --output {missing[0]}"
        )
    configs = {str(path): read_preset(path).config for path in folders.values()}
    if BUNDLE in kinds:
        if not bundle.exists():
            progress("exporting a bundle")
            _export(folders[HUGGING_FACE_FORMAT], bundle)
        folders[BUNDLE] = bundle
        configs[str(bundle)] = read_manifest(bundle).model
    first, *others = configs.items()
    for name, config in others:
        if config != first[1]:
            raise ValueError(f"{first[0]} and {name} are models of different sizes")
    return CheckpointSet(first[1], folders)


def _formats(kinds: Collection[str]) -> list[str]:
    wanted = {HUGGING_FACE_FORMAT if kind == BUNDLE else kind for kind in kinds}
    return [format for format in FORMATS if format in wanted]


def _export(preset: Path, bundle: Path) -> None:
    """By the command that a user types, in a process of its own: this one stays small."""
    command = [sys.executable, "-m", "exporter.cli", "--preset", str(preset)]
    command += ["--output", str(bundle), "--verify", "graph", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(f"exporting {preset} failed: {result.stderr.strip()}")

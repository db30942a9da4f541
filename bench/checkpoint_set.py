"""The same model in the formats that the compared systems read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from bench.make_checkpoint import FORMATS, HUGGING_FACE_FORMAT, write_checkpoint
from bench.random_weights import OPT_DEVIATION
from bench.workers.process import module_environment
from exporter.presets.folder import read_preset
from graphs.contract import ModelConfig
from graphs.manifest import read_manifest

BUNDLE = "bundle"


@dataclass(frozen=True)
class CheckpointSet:
    """One model.

    Attributes:
        config: its sizes.
        folders: where it is in each format: `"huggingface"`, `"keras"` and `"bundle"`.
    """

    config: ModelConfig
    folders: dict[str, Path]


def make_checkpoints(
    config: ModelConfig,
    folder: Path,
    kinds: Collection[str],
    seed: int,
    *,
    deviation: float = OPT_DEVIATION,
    progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Writes checkpoints of random weights.

    Args:
        config: sizes of the model.
        folder: gets a folder for each format.
        kinds: formats that are wanted; a bundle is to be exported from the Hugging Face folder.
        seed: of the weights.
        deviation: see `bench.make_checkpoint.write_checkpoint`.
        progress: told what is being done.
    """
    for format in _written_formats(kinds):
        progress(f"writing random weights as {format}")
        write_checkpoint(config, folder / format, format=format, seed=seed, deviation=deviation)


def find_checkpoints(folder: Path, kinds: Collection[str], bundle: Path) -> CheckpointSet:
    """Finds the checkpoints of these kinds in a folder, and what a bundle that is not there needs.

    Raises:
        ValueError: if one is missing, or they are not of one size.
    """
    kinds, folders, configs = set(kinds), {}, {}
    if BUNDLE in kinds and bundle.exists():
        kinds.remove(BUNDLE)
        folders[BUNDLE], configs[bundle] = bundle, read_manifest(bundle).model
    for format in _written_formats(kinds):
        path = folder / format
        if not path.is_dir():
            raise ValueError(
                f"{path} is missing; make it with: python -m bench.make_checkpoint --shape NAME "
                f"--format {format} --output {path}"
            )
        folders[format], configs[path] = path, read_preset(path).config
    (first, config), *others = configs.items()
    for path, other in others:
        if other != config:
            raise ValueError(f"{first} and {path} hold models of different sizes")
    return CheckpointSet(config, folders)


def export_bundle(checkpoints: CheckpointSet, bundle: Path) -> None:
    """Exports the Hugging Face folder by the command that a user types; adds the bundle to the set.

    The command is a process of its own, so that this one stays small.

    Raises:
        RuntimeError: if it fails.
    """
    preset = checkpoints.folders[HUGGING_FACE_FORMAT]
    command = [sys.executable, "-m", "exporter.cli", "--preset", str(preset)]
    command += ["--output", str(bundle), "--verify", "graph", "--quiet"]
    result = subprocess.run(
        command, capture_output=True, text=True, env=module_environment(), check=False
    )
    if result.returncode:
        raise RuntimeError(f"exporting {preset} failed: {result.stderr.strip()}")
    checkpoints.folders[BUNDLE] = bundle


def _written_formats(kinds: Collection[str]) -> list[str]:
    wanted = {HUGGING_FACE_FORMAT if kind == BUNDLE else kind for kind in kinds}
    return [format for format in FORMATS if format in wanted]

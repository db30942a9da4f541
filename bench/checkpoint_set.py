"""The same model in the formats that the compared systems read."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.environments import ENVIRONMENTS
from bench.make_checkpoint import FORMATS, HUGGING_FACE_FORMAT, write_checkpoint
from bench.random_weights import OPT_DEVIATION
from bench.workers.process import convert
from bench.workers.protocol import Conversion
from bench.workers.systems import System
from exporter.bundle_folder import atomic_folder
from exporter.presets.folder import read_preset
from graphs.contract import ModelConfig
from graphs.manifest import read_manifest
from runtime.system.child_process import python_command, python_environment

BUNDLE = "bundle"
CONVERSION_FILE = "bench-conversion.json"  # in a converted folder: what it was made of


@dataclass(frozen=True)
class CheckpointSet:
    """One model.

    Attributes:
        config: its sizes.
        folder: holds the formats and what workers have converted, each in a folder of its own.
        formats: where it is as `"huggingface"` and `"keras"`.
        bundles: where a bundle of it is or is to be, by the name of its system.
    """

    config: ModelConfig
    folder: Path
    formats: Mapping[str, Path]
    bundles: Mapping[str, Path]

    def path_of(self, system: System) -> Path:
        """What a system's worker loads."""
        if system.checkpoint == BUNDLE:
            return self.bundles[system.name]
        return self.folder / system.name if system.converted else self.formats[system.checkpoint]


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


def find_checkpoints(
    folder: Path, kinds: Collection[str], bundles: Mapping[str, Path]
) -> CheckpointSet:
    """Finds the checkpoints of these kinds in a folder, and what bundles that are not there need.

    Args:
        folder: has the folders `huggingface` and `keras`.
        kinds: formats that are wanted.
        bundles: of the same model, by the name of their system.

    Raises:
        ValueError: if one is missing, or they are not of one size.
    """
    formats: dict[str, Path] = {}
    configs = {path: read_manifest(path).model for path in bundles.values() if path.exists()}
    wanted = {kind for kind in kinds if kind != BUNDLE}
    if any(not path.exists() for path in bundles.values()):
        wanted.add(BUNDLE)
    for format in _written_formats(wanted):
        path = folder / format
        if not path.is_dir():
            raise ValueError(
                f"{path} is missing; make it with: python -m bench.make_checkpoint --shape NAME "
                f"--format {format} --output {path}"
            )
        formats[format], configs[path] = path, read_preset(path).config
    (first, config), *others = configs.items()
    for path, other in others:
        if other != config:
            raise ValueError(f"{first} and {path} hold models of different sizes")
    return CheckpointSet(config, folder, formats, bundles)


def export_bundle(checkpoints: CheckpointSet, system: System) -> None:
    """Exports the Hugging Face folder by the command that a user types, for CPUs.

    The command is a process of its own, so that this one stays small.

    Raises:
        RuntimeError: if it fails.
    """
    preset = checkpoints.formats[HUGGING_FACE_FORMAT]
    command = python_command("-m", "exporter.cli", "--preset", str(preset))
    command += ["--output", str(checkpoints.path_of(system)), "--precision", system.precision]
    command += ["--target", "cpu", "--verify", "graph", "--quiet"]
    result = subprocess.run(
        command, capture_output=True, text=True, env=python_environment(), check=False
    )
    if result.returncode:
        raise RuntimeError(f"exporting {preset} failed: {result.stderr.strip()}")


def convert_checkpoint(checkpoints: CheckpointSet, system: System, python: str) -> bool:
    """Converts a checkpoint for a system, unless its folder was made of the same already.

    Args:
        checkpoints: of the model; the conversion is kept in its folder.
        system: one that is `converted`.
        python: interpreter of the system's environment.

    Returns:
        Whether there was something to do.

    Raises:
        WorkerError: if it fails.
    """
    source, target = checkpoints.formats[system.checkpoint], checkpoints.path_of(system)
    made_of = json.dumps(_conversion_inputs(system, source), indent=2) + "\n"
    stamp = target / CONVERSION_FILE
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == made_of:
        return False
    with atomic_folder(target) as temporary:
        convert(system, Conversion(str(source), str(temporary), system.options), python)
        (temporary / CONVERSION_FILE).write_text(made_of, encoding="utf-8")
    return True


def _conversion_inputs(system: System, source: Path) -> dict[str, object]:
    files = {path.name: path.stat() for path in sorted(source.iterdir())}
    environment = ENVIRONMENTS.get(system.environment or "")
    return {
        "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in files.items()},
        "options": system.options,
        "requirements": list(environment.requirements) if environment else [],
    }


def _written_formats(kinds: Collection[str]) -> list[str]:
    wanted = {HUGGING_FACE_FORMAT if kind == BUNDLE else kind for kind in kinds}
    return [format for format in FORMATS if format in wanted]

"""The file of a LoRA adapter: its settings and pairs alone, in HDF5.

Attributes of the file are `format`, `rank`, `alpha` and `targets`; each variable of a pair is a
float32 data set under its Keras path, `transformer_layer_0/attention/qkv/lora_query_a` say.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from exporter.checkpoints.h5_file import H5Reader
from exporter.errors import CheckpointError
from exporter.foreign_files import refuse_pointer
from exporter.opt.keras_backend import keras
from exporter.opt.lora import LoRA
from graphs.shown import listed

FORMAT = "opt-onnx LoRA 1"
SUFFIX = ".lora.h5"


def check_name(path: str | Path) -> Path:
    """The path, if it ends as Keras wants it.

    Raises:
        ValueError: if not.
    """
    if not str(path).endswith(SUFFIX):
        raise ValueError(f"the filename must end in {SUFFIX!r}, got {str(path)!r}")
    return Path(path)


def write(path: Path, lora: LoRA, variables: dict[str, Any]) -> None:
    """Writes an adapter's settings and variables by path."""
    with h5py.File(path, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["rank"] = lora.rank
        file.attrs["alpha"] = lora.alpha
        file.attrs["targets"] = list(lora.targets)
        for name, variable in variables.items():
            file.create_dataset(name, data=keras.ops.convert_to_numpy(variable.value))


def read(path: Path) -> tuple[LoRA, dict[str, np.ndarray]]:
    """An adapter's settings, and its variables' values by path.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it holds no adapter.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no adapter {path}; save_lora_weights() writes one")
    refuse_pointer(path, CheckpointError)
    try:
        with contextlib.closing(H5Reader(path)) as reader:
            return read_settings(reader), {name: reader.read(name) for name in reader.shapes}
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{path} is no LoRA adapter or is damaged: {error}") from None


def read_settings(reader: H5Reader) -> LoRA:
    """An adapter's settings alone.

    Raises:
        CheckpointError: if it holds no adapter.
    """
    try:
        settings = reader.attributes
        if str(settings.get("format")) != FORMAT:
            raise ValueError(
                f"its format is {settings.get('format')!r:.200}, expected {FORMAT!r}; "
                "save_lora_weights() writes one"
            )
        return LoRA.of(
            int(settings["rank"]), float(settings["alpha"]), [str(t) for t in settings["targets"]]
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"its settings are not valid: {error}") from None


def check_fit(
    path: Path, found: LoRA, enabled: LoRA | None, values: dict[str, np.ndarray], shapes: dict[str, Any]
) -> None:
    """Checks an adapter against a model before anything of the model changes.

    Args:
        path: the file.
        found: its settings.
        enabled: the model's own settings; `None` without LoRA.
        values: the file's variables.
        shapes: those that the model has, or will have, with these settings.

    Raises:
        CheckpointError: naming everything that differs.
    """
    problems = []
    if enabled is not None:
        problems += [
            f"{name} is {theirs!r} in the file and {ours!r} in the model"
            for name in ("rank", "alpha", "targets")
            if (theirs := getattr(found, name)) != (ours := getattr(enabled, name))
        ]
    missing = sorted(set(shapes) - set(values))
    surplus = sorted(set(values) - set(shapes))
    problems += [f"missing {listed(missing)}"] if missing else []
    problems += [f"surplus {listed(surplus)}"] if surplus else []
    misshaped = [
        f"{name} is {values[name].shape}, expected {shape}"
        for name, shape in shapes.items()
        if name in values and values[name].shape != shape
    ]
    problems += [listed(misshaped)] if misshaped else []
    if problems:
        raise CheckpointError(
            f"the LoRA adapter {path} does not fit the model: {'; '.join(problems)}. Load it into a "
            "model of the sizes that it was trained on, with LoRA not enabled or with its settings"
        )

"""What tests know of the toy bundle, and small stand-ins."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphs.plain_files import hash_file
from graphs.sealed_json import seal
from runtime.samplers import Sampler

VOCABULARY, POSITIONS, HIDDEN, DEFAULT_LENGTH = 300, 64, 32, 48
START = END = 2

_EXPECTED = json.loads((Path(__file__).parents[1] / "data" / "toy_expected.json").read_text("utf-8"))

# Keras's own logits and greedy tokens for seven prompts; see data/make_toy_bundle.py.
CASES: list[dict[str, Any]] = _EXPECTED["cases"]
HIDDEN_STATES: dict[str, Any] = _EXPECTED["hidden_states"]


@dataclass
class ScriptedSampler(Sampler):
    """Draws the given tokens in turn, the same for every row; remembers how many rows it saw."""

    script: Sequence[int]

    def __post_init__(self) -> None:
        super().__init__()
        self._next: Iterator[int] = iter(self.script)
        self.rows_seen: list[int] = []

    def sample(self, logits: Any, generators: Sequence[np.random.Generator]) -> Any:
        self.rows_seen.append(len(logits))
        return np.full(len(logits), next(self._next), np.int64)


class FakeTensor:
    """Has the two attributes that tell an eager tensor of TensorFlow or Keras."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self.shape = np.shape(value)

    def numpy(self) -> Any:
        return self._value


class FakeDataset:
    """Has the one method of `tf.data.Dataset` that the runtime uses."""

    def __init__(self, elements: Sequence[Any]) -> None:
        self._elements = elements

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("a dataset is read through as_numpy_iterator")

    def as_numpy_iterator(self) -> Iterator[Any]:
        return iter(self._elements)


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest's JSON in place, as one who alters a bundle on purpose would."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text("utf-8"))
    del values["sha256"]
    edit(values)
    path.write_text(seal(values), "utf-8")


def flip_byte(path: Path, position: int) -> None:
    """Alters one byte and leaves the size."""
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def approve(folder: Path, name: str) -> None:
    """Makes the manifest say of a file what it is, as one who alters a bundle on purpose would."""

    def edit(values: dict[str, Any]) -> None:
        entries = [*values["graphs"].values(), values["weights"], *values["tokenizer"]]
        entry = next(entry for entry in entries if entry["name"] == name)
        entry["size"] = (folder / name).stat().st_size
        entry["sha256"] = hash_file(folder / name)

    edit_manifest(folder, edit)


def ragged_pieces(
    rows: Sequence[Sequence[int]], pieces: Sequence[Sequence[int]]
) -> Iterator[tuple[list[list[int]], list[int]]]:
    """The tokens that each row gets in each piece, and how many it has then."""
    done = [0] * len(rows)
    for piece in pieces:
        new = [list(row[at : at + n]) for row, at, n in zip(rows, done, piece, strict=True)]
        done = [at + n for at, n in zip(done, piece, strict=True)]
        yield new, done

"""Putting files into a folder so that it never holds one model's files among another's."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from exporter.errors import PresetError
from exporter.output_place import sync
from exporter.presets.json_file import read_json

# Without the first a folder is no preset; a tokenizer saved alone is none without the second.
KEY_FILES = ("config.json", "tokenizer.json")


def check_format(folder: Path, layout: str) -> None:
    """Raises `ValueError` if a folder holds a model in another format than the one to be saved.

    Args:
        folder: may not exist yet.
        layout: `"keras"` or `"huggingface"`.
    """
    path = folder / "config.json"
    if not path.is_file():
        return
    try:
        found = "keras" if "class_name" in read_json(path) else "huggingface"
    except PresetError:
        return  # broken, and about to be replaced
    if found != layout:
        names = {"keras": "a Keras preset", "huggingface": "a Hugging Face model"}
        raise ValueError(
            f"{folder} holds {names[found]}, and {names[layout]} has files of the same names; "
            "give another folder"
        )


@contextlib.contextmanager
def staged_files(folder: Path, replaced: Sequence[str] = ()) -> Iterator[Path]:
    """A place to write files in, which move into a folder when the block ends without an error.

    After an error in the block the folder is as it was. While the files move it has no `config.json`:
    what stops that (a kill, a full disk) leaves a folder that is refused and not one that loads as a
    mixture, with what has not moved in `.saving-…` inside it. The folder's other files stay.

    Args:
        folder: created with its parents where it does not exist.
        replaced: patterns of paths in the folder, files that the written ones stand for; removed.

    Raises:
        ValueError: if there is a file in the folder's place.
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder to save into")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    stage = folder / f".saving-{os.getpid()}"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
        written = [path.relative_to(stage) for path in stage.rglob("*") if path.is_file()]
        for path in written:
            sync(stage / path)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        if made:
            folder.rmdir()
        raise
    _move(written, stage, folder, replaced)
    shutil.rmtree(stage)
    sync(folder)


def _move(written: Sequence[Path], stage: Path, folder: Path, replaced: Sequence[str]) -> None:
    hidden = stage / "hidden"
    hidden.mkdir()
    for name in KEY_FILES:
        if (folder / name).is_file():
            (folder / name).replace(hidden / name)
    for pattern in replaced:
        for path in folder.glob(pattern):
            path.unlink()
    for path in sorted(written, key=_order):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (stage / path).replace(folder / path)
    for name in reversed(KEY_FILES):
        stands = Path(name) in written or any(fnmatch.fnmatch(name, p) for p in replaced)
        if not stands and (hidden / name).is_file():  # only a part of the preset was saved
            (hidden / name).replace(folder / name)


def _order(path: Path) -> int:
    """Key files go last, and the first of them after all others."""
    name = str(path)
    return len(KEY_FILES) - KEY_FILES.index(name) if name in KEY_FILES else 0

"""Finding the files of a folder that a stranger may have made."""

from __future__ import annotations

import stat
from pathlib import Path

# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
POINTER = b"version https://git-lfs.github.com/spec/v1"
MAX_POINTER_BYTES = 1024
# Its files came with this package and are as trusted as its code, which some installers link too.
OWN_FOLDER = Path(__file__).parent / "presets" / "opt_tiny_en"


def find_file(folder: Path, name: str, error: type[ValueError]) -> Path | None:
    """The regular file of a name in a folder; `None` if there is nothing.

    The folder itself may be a link, and its files may be links within it. A link that leads out is
    refused: it would put a file that the folder's maker has never seen into what is made of it. The
    cache of `huggingface_hub` is laid out with such links, from `snapshots/COMMIT` into the `blobs`
    beside `snapshots`, and its folders serve whoever names them. In the built-in preset's own folder
    all links are followed.

    Args:
        folder: the folder of the preset.
        name: path of the file in it, from this program and not from a file.
        error: what to raise.

    Raises:
        error: if it is a folder, pipe or device, a link that leads out of the folder or nowhere, or
            what Git LFS leaves in the place of a file that was not fetched.
    """
    path = folder / name
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise error(f"{path} is a link to {path.readlink()}, which is not there") from None
        return None
    except (OSError, ValueError) as failure:  # links in a circle, a null character in the name
        raise error(f"{path} cannot be read: {failure}") from None
    if not stat.S_ISREG(mode):
        raise error(f"{path} is not a regular file; put a plain file in its place")
    target, home = path.resolve(), folder.resolve()
    inside = target.is_relative_to(home) or _is_blob(target, home)
    if not inside and home != OWN_FOLDER.resolve():
        raise error(
            f"{path} is a link out of its folder, to {target}, which is not followed; put a copy of "
            "the file into the folder, or give the folder that it is in"
        )
    refuse_pointer(path, error)
    return path


def refuse_pointer(path: Path, error: type[ValueError]) -> None:
    """Raises the error for what `git clone` writes in the place of a file without Git LFS."""
    if path.stat().st_size > MAX_POINTER_BYTES:
        return
    with path.open("rb") as file:
        start = file.read(len(POINTER))
    if start == POINTER:
        raise error(
            f"{path} is a pointer of Git LFS, which stands for the file until it is fetched; run "
            "`git lfs pull` in its repository"
        )


def _is_blob(target: Path, home: Path) -> bool:
    """Whether a file is where the cache of `huggingface_hub` keeps those of a snapshot."""
    return home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"

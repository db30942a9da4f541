"""The control groups that this process is in: what a container, say, allows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
FOLDER = "sys/fs/cgroup"


@dataclass(frozen=True)
class ControlGroup:
    """The folder of a group's files; `version` 1 and 2 name them differently."""

    folder: Path
    version: int

    def read(self, name: str) -> str:
        """The text of one of the group's files, empty where there is none."""
        return read_text(self.folder / name)


def control_groups(controller: str, root: Path = ROOT) -> Iterator[ControlGroup]:
    """The groups that limit this process: its own and those above, in one respect.

    Args:
        controller: the respect, `"cpu"` or `"memory"`.
        root: where `/proc` and `/sys` are.
    """
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number, controllers, group = line.split(":", 2)
        if number == "0" and not controllers:  # version 2: one hierarchy
            for folder in _lineage(root / FOLDER, group):
                yield ControlGroup(folder, 2)
        elif controller in controllers.split(","):
            for mount in dict.fromkeys((controllers, controller)):
                for folder in _lineage(root / FOLDER / mount, group):
                    yield ControlGroup(folder, 1)


def read_text(path: Path) -> str:
    """The text of a file of the kernel's, empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _lineage(mount: Path, group: str) -> Iterator[Path]:
    """A group's folder and those above it. In a container only the mount itself may be there."""
    folder = mount / group.lstrip("/")
    while folder != mount and mount in folder.parents:
        yield folder
        folder = folder.parent
    yield mount

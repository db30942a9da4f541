"""Loads a bundle and writes with it, watched and limited.

    python -m tests.faults.watched_bundle FOLDER

Prints as JSON the error's class, `null` if there was none; its message, else the text that came; and
the files outside the bundle that Python opened and must not. It is apart from `hostile_bundles` since
these processes do not have to import what makes the bundles.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

from runtime import Generator, session  # noqa: F401  (what is imported later would be watched too)

OUTSIDE = "outside"  # a folder beside the bundle, with a copy of its files and a pipe
MEMORY = 512 * 1024**2
PROMPT, LENGTH = "the king", 12


def run(folder: Path) -> tuple[str | None, str, list[str]]:
    """Loads a bundle and writes with it, watched and limited."""
    opened: list[str] = []
    allowed = tuple(f"{path}/" for path in (folder, folder.parent / "cache", "/proc", "/sys", "/dev"))
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
            opened.append(event)
        if event != "open" or not isinstance(arguments[0], str):
            return
        path, flags = arguments[0], arguments[2]
        beside = path.startswith(f"{folder.parent / OUTSIDE}/") or path == "/etc/passwd"
        written = isinstance(flags, int) and flags & writing and not path.startswith(allowed)
        if beside or written:
            opened.append(path)

    used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    sys.addaudithook(audit)
    try:
        generator = Generator.from_bundle(folder, device="cpu", threads=1, verify=True)
        generator.compile("greedy")
        return None, generator.generate(PROMPT, max_length=LENGTH), opened
    except Exception as error:
        return type(error).__name__, str(error), opened


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))))

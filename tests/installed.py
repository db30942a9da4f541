"""An installation of this project in an environment of its own, made without pip: copies or links.

And folders of a stranger's, who has written a module for every name that Python may look for.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("bench", "exporter", "graphs", "runtime")
COMMANDS = {
    "opt-bench": "bench.opt_bench",
    "opt-export": "exporter.cli",
    "opt-generate": "runtime.cli",
}
# What pip writes for an entry of `project.scripts`.
SCRIPT = """\
#!/bin/sh
'''exec' {python!r} "$0" "$@"
' '''
import sys
from {module} import main
if __name__ == '__main__':
    sys.exit(main())
"""
NEEDED = ("numpy", "tokenizers", "onnxruntime", "h5py", "tensorflow")
# What Python and site look for at their start, and what is imported only by name or in some runs.
MORE_NAMES = (*NEEDED, "encodings", "matplotlib", "sitecustomize", "usercustomize")
# What an entry of `PYTHONPATH` that is the working folder lets into a command before its first line.
BEFORE_COMMANDS = ("encodings", "sitecustomize", "usercustomize", *PACKAGES)


def install(environment: Path, *, links: bool = False) -> Path:
    """Installs this project into a new environment.

    Args:
        environment: its folder.
        links: whether each file is a symbolic link, as `uv --link-mode symlink` makes them.

    Returns:
        The folder of the commands.
    """
    venv.create(environment, symlinks=os.name != "nt")
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    site_packages = environment / "lib" / version / "site-packages"
    place = os.symlink if links else shutil.copy2
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(
            REPOSITORY / package, site_packages / package, copy_function=place, ignore=ignored
        )
    python = str(environment / "bin" / "python3")
    for command, module in COMMANDS.items():
        script = environment / "bin" / command
        script.write_text(SCRIPT.format(python=python, module=module), encoding="utf-8")
        script.chmod(0o755)
    specs = filter(None, map(importlib.util.find_spec, NEEDED))
    folders = {str(Path(str(spec.origin)).parents[1]) for spec in specs}
    (site_packages / "needed.pth").write_text("\n".join(sorted(folders)), encoding="utf-8")
    return environment / "bin"


def make_hostile(folder: Path, names: Iterable[str] = (), spared: Iterable[str] = ()) -> Path:
    """Writes modules that leave a mark and end the process that imports them.

    Args:
        folder: where to.
        names: of further modules.
        spared: names that none is written for.

    Returns:
        The file that is there once one of them was imported.
    """
    marker = folder.with_name(f"{folder.name}-marker")
    folder.mkdir(parents=True, exist_ok=True)
    # `encodings` is imported before there is an `open`.
    code = (
        f"import {os.name} as system\n"
        f"file = system.open({str(marker)!r}, {os.O_CREAT | os.O_WRONLY})\n"
        "system.write(file, __name__.encode('ascii'))\n"
        "raise SystemExit(77)\n"
    )
    loaded = {name.partition(".")[0] for name in sys.modules}
    every = {*sys.stdlib_module_names, *loaded, *MORE_NAMES, *PACKAGES, *names}
    for name in every - set(spared):
        if name.isidentifier() and name != "__main__":
            (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return marker


def run(
    command: list[str | Path], folder: Path, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder, without this process's own `PYTHON...` variables."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, **(variables or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )

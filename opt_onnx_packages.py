"""Finds this project's packages, whose plain names an application may use for its own.

    python -P -m opt_onnx_packages COMMAND ...

is what the commands' scripts run.
"""

from __future__ import annotations

import importlib.util
import os
import sys

HOME = os.path.dirname(os.path.abspath(__file__))
NAMES = ("bench", "exporter", "graphs", "runtime")
COMMANDS = {
    "opt-bench": "bench.opt_bench",
    "opt-export": "exporter.cli",
    "opt-generate": "runtime.cli",
}


def check_packages(*names: str) -> None:
    """Looks for packages without importing them.

    Raises:
        ImportError: if what would be imported under a name is not this project's, with its file.
    """
    for name in names:
        found = _place(name)
        if not found:
            raise ImportError(
                f"opt-onnx's package {name!r} is not in {HOME}; install opt-onnx again", name=name
            )
        if os.path.dirname(found) != os.path.join(HOME, name) and not _is_same(found, name):
            raise ImportError(
                f"{found} is found where opt-onnx needs its own package {name!r}, in "
                f"{HOME}; rename it, or put {HOME} before its folder on Python's search path",
                name=name,
                path=found,
            )


def _place(name: str) -> str:
    """The file or folder that an import would take; empty if there is none."""
    if (module := sys.modules.get(name)) is not None:
        return getattr(module, "__file__", None) or str(module)
    spec = importlib.util.find_spec(name)
    if spec is None:
        return ""
    return spec.origin or next(iter(spec.submodule_search_locations or []), "")


def _is_same(found: str, name: str) -> bool:
    """Whether it is this project's under another path."""
    try:
        return os.path.samefile(os.path.dirname(found), os.path.join(HOME, name))
    except OSError:
        return False


def main() -> int:
    """Runs the command of the first argument; 2 after one sentence if its packages are not there."""
    command = sys.argv.pop(1) if len(sys.argv) > 1 else "nothing"
    if command not in COMMANDS:
        print(f"opt-onnx: {command} is no command; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    # Keras loads it where it is installed, and it reads a `matplotlibrc` of the working folder.
    sys.modules["matplotlib"] = None  # type: ignore[assignment]
    try:
        check_packages(*NAMES)
        run = importlib.import_module(COMMANDS[command]).main
    except ImportError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    code: int = run()
    return code


if __name__ == "__main__":
    sys.exit(main())

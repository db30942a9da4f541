"""What stands where this project's packages and Python's own are looked for.

The first module of every command: it uses nothing but what Python has loaded at its start.
"""

import os
import sys

HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COMMANDS = ("opt-bench", "opt-export", "opt-generate")


def leave_working_folder() -> None:
    """Has commands import nothing through empty and relative entries of `PYTHONPATH`.

    Those are the working folder or in it, which may be a stranger's. An application's search path is
    its own affair, and stays.
    """
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    name = os.path.basename((getattr(sys, "argv", None) or [""])[0]).removesuffix(".exe")
    if name not in COMMANDS or entries == [""]:
        return
    kept = {HOME, os.path.dirname(os.__file__), *filter(os.path.isabs, entries)}
    left = {os.path.abspath(entry) for entry in entries} - kept
    sys.path[:] = [path for path in sys.path if os.path.isabs(path) and path not in left]


def check_packages(*names: str) -> None:
    """Looks for packages of this project without importing them; an application may have others.

    Raises:
        ImportError: if what would be imported under a name is not this project's, with its file.
    """
    for name in names:
        found = _place(name)
        if os.path.dirname(found) != os.path.join(HOME, name) and not _is_same(found, name):
            raise ImportError(
                f"{found or 'nothing'} is found where opt-onnx needs its own package {name!r}, in "
                f"{HOME}; rename it, or put {HOME} before its folder on Python's search path",
                name=name,
                path=found,
            )


def _place(name: str) -> str:
    """The file or folder that an import would take; empty if there is none."""
    if (module := sys.modules.get(name)) is not None:
        return getattr(module, "__file__", None) or str(module)
    from importlib.util import find_spec

    if (spec := find_spec(name)) is None:
        return ""
    return spec.origin or next(iter(spec.submodule_search_locations or []), "")


def _is_same(found: str, name: str) -> bool:
    """Whether it is this project's under another path."""
    try:
        return os.path.samefile(os.path.dirname(found), os.path.join(HOME, name))
    except OSError:
        return False


leave_working_folder()

"""Python in a process of its own, with the imports of this one and none from the working folder.

`python -m` and `python -c` look for modules in the working folder first, and so do empty and relative
entries of search paths. The folder may be a stranger's checkpoint with a `json.py`. So a child is
started with a safe path (`-P`) and given this process's search path without them; this project's
packages come from where this process has them, whatever else has their names.
"""

from __future__ import annotations

import contextlib
import os
import site
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

HOME = Path(__file__).absolute().parents[2]
OWN_MODULES = ("bench", "exporter", "graphs", "runtime")
# Variables that name folders of code, of Python and of the system.
SEARCHED = (
    *("PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONPYCACHEPREFIX", "PYTHONUSERBASE"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "HDF5_PLUGIN_PATH"),
)

# What a child runs first, with nothing but Python's own folders to import from.
_START = """\
import sys
from importlib.machinery import PathFinder
from runpy import run_module

home, own_modules, path, kind, what = {settings}


class OwnModules:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [home]) if name in own_modules else None


sys.path[:] = path + [entry for entry in sys.path if entry not in path]
sys.meta_path.insert(0, OwnModules)
if kind == "-m":
    run_module(what, run_name="__main__", alter_sys=True)
else:
    exec(compile(what, "<string>", "exec"), {{"__name__": "__main__"}})
"""


def python_command(
    kind: str, what: str, *arguments: str, python: str | None = None, untrusted: Collection[Path] = ()
) -> list[str]:
    """The command line of a child; it goes with `python_environment`.

    Args:
        kind: `"-m"` or `"-c"`, as of `python`.
        what: the module, or the program.
        arguments: its own.
        python: another environment's interpreter, which keeps its own search path; by default this one.
        untrusted: folders of a stranger's; entries of the search path in them are left out.
    """
    path = search_path(untrusted) if python in (None, sys.executable) else []
    if path and str(HOME) not in path:
        path.append(str(HOME))  # it may hold more than this project, numpy for one
    flags = {"-E": "ignore_environment", "-s": "no_user_site", "-S": "no_site"}
    options = [option for option, name in flags.items() if getattr(sys.flags, name)]
    settings = ascii((str(HOME), OWN_MODULES, path, kind, what))
    start = _START.format(settings=settings)
    return [python or _interpreter(), "-P", *options, "-c", start, *arguments]


def python_environment(
    changes: Mapping[str, str] | None = None, *, untrusted: Collection[Path] = ()
) -> dict[str, str]:
    """Environment variables of a child: this process's without places in the working folder.

    Args:
        changes: further variables.
        untrusted: folders of a stranger's; places in them are left out too.
    """
    environment = dict(os.environ)
    for name in set(SEARCHED) & set(environment):
        entries = [e for e in environment[name].split(os.pathsep) if _is_outside(e, untrusted)]
        environment[name] = os.pathsep.join(entries)
        if not entries:
            del environment[name]
    return {**environment, "PYTHONSAFEPATH": "1", **(changes or {})}


@contextlib.contextmanager
def safe_environment() -> Iterator[None]:
    """This process's variables are a child's for a while: multiprocessing starts Python itself."""
    before = dict(os.environ)
    _replace_environment(python_environment())
    try:
        yield
    finally:
        _replace_environment(before)


def _replace_environment(variables: dict[str, str]) -> None:
    for name in set(os.environ) - set(variables):
        del os.environ[name]
    os.environ.update(variables)


def search_path(untrusted: Collection[Path] = ()) -> list[str]:
    """The entries of this process's search path that a child may import from, in their order.

    Those that are empty or relative or in an untrusted folder are left out, and so is the working
    folder unless `PYTHONPATH` names it in full or Python and its packages are installed there.
    """
    given = [] if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "").split(os.pathsep)
    here = set()
    with contextlib.suppress(OSError):  # of a folder that was removed
        here = {os.path.realpath(e) for e in (os.curdir, os.environ.get("PWD", os.curdir), *given)}
    installed = [os.path.dirname(os.__file__), *site.getsitepackages(), site.getusersitepackages()]
    named = [entry for entry in given if os.path.isabs(entry)]
    here -= {os.path.realpath(entry) for entry in (*installed, *named)}
    return [p for p in sys.path if _is_outside(p, untrusted) and os.path.realpath(p) not in here]


def _is_outside(path: str, folders: Collection[Path]) -> bool:
    """Whether a path is named in full, and in none of the folders."""
    if not os.path.isabs(path):
        return False
    place = Path(os.path.realpath(path))
    return not any(place.is_relative_to(os.path.realpath(folder)) for folder in folders)


def _interpreter() -> str:
    """This process's Python; where it is part of another program, the one that belongs to it."""
    found = Path(sys.executable or "")
    if not found.name.lower().startswith(("python", "pypy")):
        for name in (f"python{sys.version_info[0]}.{sys.version_info[1]}", "python3", "python.exe"):
            for folder in (Path(sys.exec_prefix, "bin"), Path(sys.exec_prefix)):
                if (folder / name).is_file():
                    return str(folder / name)
    if not sys.executable:
        raise RuntimeError(
            f"there is no Python interpreter in {sys.exec_prefix} for a process of its own; set "
            "sys.executable to one with the same packages"
        )
    return sys.executable

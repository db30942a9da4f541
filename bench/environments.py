"""`python -m bench.environments`: a virtual environment for each compared system.

What the systems need conflicts (three versions of transformers) or is heavy, so none of it is wanted
in this project's own environment.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.command import print_progress
from runtime.command import CommandParser, run_command
from runtime.system.child_process import python_command, python_environment

DEFAULT_FOLDER = "bench-environments"
MARKER = "bench-requirements.txt"  # written last: an environment that has it is whole
ERROR_LINES = 20  # of a failed installation

EXAMPLES = f"""\
examples:
  python -m bench.environments
      all of them, in ./{DEFAULT_FOLDER}; those that are there and up to date stay
  python -m bench.environments --only ctranslate2,openvino --folder environments
Then: python -m bench.compare --shape opt_125m --environments {DEFAULT_FOLDER}
pip is asked for torch by version; where that is a build for GPUs of several gigabytes, point pip at
torch's index of CPU builds (PIP_EXTRA_INDEX_URL).
"""


@dataclass(frozen=True)
class Environment:
    """One virtual environment.

    Attributes:
        name: of its folder.
        module: that its workers import.
        requirements: as pip takes them. What they need in turn is left to pip.
        unwanted: packages that pip brings along, to be taken out again.
    """

    name: str
    module: str
    requirements: tuple[str, ...]
    unwanted: tuple[str, ...] = ()


TORCH = "torch==2.13.0"

ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(
            "keras-hub",
            "keras_hub",
            ("keras-hub==0.32.0", "keras==3.15.1", "tensorflow==2.21.0", "tensorflow-text==2.21.1"),
        ),
        Environment("transformers", "transformers", ("transformers==5.23.0", TORCH)),
        # transformers and torch convert; generating imports ctranslate2 and NumPy only.
        Environment(
            "ctranslate2", "ctranslate2", ("ctranslate2==4.8.5", "transformers==5.23.0", TORCH)
        ),
        # optimum-intel, nncf and torch convert; generating imports openvino_genai only. optimum-intel
        # asks for torchvision, for images; a build that does not go with torch's breaks its import.
        Environment(
            "openvino",
            "openvino_genai",
            ("openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0", TORCH),
            unwanted=("torchvision",),
        ),
        # With accelerate, its export stores the tied embedding once.
        Environment(
            "optimum-onnx",
            "optimum.onnxruntime",
            (
                "optimum-onnx==0.1.0",
                "onnxruntime==1.32.0",
                "transformers==4.57.6",
                "accelerate==1.15.0",
                TORCH,
            ),
        ),
    )
}


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m bench.environments",
        description="Make a virtual environment for each system that bench.compare measures.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        default=",".join(ENVIRONMENTS),
        metavar="NAME,NAME",
        help=f"default: {','.join(ENVIRONMENTS)}",
    )
    parser.add_argument(
        "--folder", default=DEFAULT_FOLDER, metavar="DIR", help=f"default: {DEFAULT_FOLDER}"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 on an error and 130 on Ctrl-C."""
    return run_command("environments", _run, build_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    folder = Path(options.folder)
    for environment in parse_environments(options.only):
        made = make_environment(environment, folder, print_progress)
        print(f"{folder / environment.name}: {'made' if made else 'is up to date'}", flush=True)


def parse_environments(text: str) -> list[Environment]:
    """The environments of a list of names.

    Raises:
        ValueError: if a name is unknown.
    """
    names = text.split(",")
    if unknown := [name for name in names if name not in ENVIRONMENTS]:
        raise ValueError(f"--only: there is no {unknown[0]!r}; choose among {', '.join(ENVIRONMENTS)}")
    return [ENVIRONMENTS[name] for name in names]


def make_environment(
    environment: Environment, folder: Path, progress: Callable[[str], None] = lambda text: None
) -> bool:
    """Makes an environment anew unless it is whole and has today's requirements.

    Args:
        environment: which.
        folder: gets a folder of the environment's name.
        progress: told what is being done.

    Returns:
        Whether there was something to do.

    Raises:
        RuntimeError: if it cannot be made, with what pip said.
    """
    path = folder / environment.name
    if is_whole(environment, folder):
        return False
    progress(f"making {path}")
    python = str(environment_python(path))
    _call(environment, "-m", "venv", "--clear", str(path))
    _call(environment, "-m", "pip", "install", "--quiet", *environment.requirements, python=python)
    if environment.unwanted:
        _call(
            environment, "-m", "pip", "uninstall", "-y", "--quiet", *environment.unwanted, python=python
        )
    _call(environment, "-c", f"import {environment.module}", python=python)
    (path / MARKER).write_text(_marker_text(environment), encoding="utf-8")
    return True


def is_whole(environment: Environment, folder: Path) -> bool:
    """Whether the environment is there, was made to the end and has today's requirements."""
    marker = folder / environment.name / MARKER
    return marker.is_file() and marker.read_text(encoding="utf-8") == _marker_text(environment)


def find_python(name: str | None, folder: Path) -> str:
    """The interpreter that a system's worker runs with.

    Args:
        name: of the system's environment; `None` for this project's own.
        folder: where environments are looked for.

    Returns:
        The environment's interpreter where the folder has it, else the running one.

    Raises:
        ValueError: if there is no environment and the running interpreter lacks the package.
    """
    if name is None:
        return sys.executable
    environment = ENVIRONMENTS[name]
    if is_whole(environment, folder):
        return str(environment_python(folder / name).absolute())
    if _is_importable(environment.module):
        return sys.executable
    raise ValueError(
        f"{folder / name} is no environment with {environment.requirements[0]}, and this Python has no "
        f"{environment.module}; make it with: python -m bench.environments --only {name} "
        f"--folder {folder}"
    )


def environment_python(path: Path) -> Path:
    """The interpreter of a virtual environment."""
    return path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that holds it is missing
        return False


def _marker_text(environment: Environment) -> str:
    without = (f"without {package}" for package in environment.unwanted)
    return "".join(f"{line}\n" for line in (*environment.requirements, *without))


def _call(environment: Environment, *command: str, python: str | None = None) -> None:
    result = subprocess.run(
        python_command(*command, python=python),
        env=python_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        told = "\n".join((result.stderr or result.stdout).strip().splitlines()[-ERROR_LINES:])
        raise RuntimeError(f"making the environment {environment.name} failed:\n{told}")


if __name__ == "__main__":
    sys.exit(main())

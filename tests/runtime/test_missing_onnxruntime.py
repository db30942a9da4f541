"""Without ONNX Runtime the error says what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BLOCK = """\
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "onnxruntime":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run(program: str, bundle: Path, repository: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK + program, str(bundle)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_names_both_flavours(text: str) -> None:
    assert "ONNX Runtime is not installed" in text
    assert "pip install 'opt-onnx[cpu]'" in text
    assert "pip install 'opt-onnx[gpu]'" in text


def test_the_library_names_both_extras(toy_bundle: Path, repository: Path) -> None:
    program = """
from runtime import Generator, RuntimeMissingError
try:
    Generator.from_bundle(sys.argv[1])
except RuntimeMissingError as error:
    assert isinstance(error, ImportError)
    print(error)
"""
    result = run(program, toy_bundle, repository)
    assert (result.returncode, result.stderr) == (0, "")
    assert_names_both_flavours(result.stdout)


def test_the_command_names_both_extras(toy_bundle: Path, repository: Path) -> None:
    program = 'from runtime.cli import main\nsys.exit(main([sys.argv[1], "the"]))\n'
    result = run(program, toy_bundle, repository)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("opt-generate: ")
    assert "Traceback" not in result.stderr
    assert_names_both_flavours(result.stderr)

"""A process that serves has no deep-learning framework loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("tensorflow", "keras", "tf2onnx", "onnx", "torch", "h5py")
GENERATE = """\
from runtime import Generator, samplers
generator = Generator.from_bundle(sys.argv[1])
generator.compile(samplers.TopKSampler(seed=1))
assert len(generator.generate(["the", "a quick"], max_length=20)) == 2
assert "".join(generator.stream("the")).startswith("the")
batches = iter([["the"], ["a"]])
assert len(generator.generate_results(batches)) == 2
"""
COMMAND = """\
from runtime.cli import main
assert main([sys.argv[1], "the", "--seed", "1"]) == 0
"""
PROBE = "import runtime.probe\n"
REPORT = """
roots = sorted({name.partition(".")[0] for name in sys.modules})
print("LOADED", *roots)
"""
# What a text needs of which something is asked, and a start without waits for none of it.
OPTIONS = (
    "runtime.generation_options",
    "runtime.option_values",
    "runtime.request_options",
    "runtime.engine.processors",
    "runtime.structured",
)


@pytest.mark.parametrize("program", [GENERATE, COMMAND, PROBE], ids=["library", "command", "probe"])
def test_nothing_heavy_is_loaded(program: str, toy_bundle: Path, repository: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}{REPORT}", str(toy_bundle)],
        cwd=repository,
        capture_output=True,
        check=True,
    )
    loaded = result.stdout.decode(errors="replace").rpartition("LOADED ")[2].split()
    assert {"numpy", "onnxruntime", "runtime"} <= set(loaded)
    assert set(loaded).isdisjoint(HEAVY)
    assert set(loaded).isdisjoint({"exporter", "bench", "onnx_ir", "onnxscript", "transformers"})


@pytest.mark.parametrize("program", [GENERATE, COMMAND], ids=["library", "command"])
def test_who_asks_for_no_options_loads_none(program: str, toy_bundle: Path, repository: Path) -> None:
    report = 'print("LOADED", *sorted(sys.modules))'
    result = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}{report}", str(toy_bundle)],
        cwd=repository,
        capture_output=True,
        check=True,
    )
    loaded = result.stdout.decode(errors="replace").rpartition("LOADED ")[2].split()
    assert "runtime.generator" in loaded
    assert [name for name in loaded if name.startswith(OPTIONS)] == []


def test_importing_the_package_loads_no_session(repository: Path) -> None:
    """`import runtime` works without ONNX Runtime: the exporter uses its loop on Keras."""
    result = subprocess.run(
        [sys.executable, "-c", f"import sys\nimport runtime\n{REPORT}"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = result.stdout.rpartition("LOADED ")[2].split()
    assert "runtime" in loaded
    assert set(loaded).isdisjoint({*HEAVY, "onnxruntime"})

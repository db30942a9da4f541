"""Traced graphs, each of which takes seconds, kept on disk by content for all workers and runs.

A graph is found again by everything that it comes from: the model's sizes and switches, the phase, the
sources that trace and the versions of the packages that they trace with. Needs the exporter.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path

from bench.traced_graphs import load_program, save_program
from exporter.tracing import build_weightless_backbone, trace
from graphs.contract import ModelConfig, Phase
from graphs.program import Program

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / ".pytest_cache" / "traced_graphs"
SOURCES = ("exporter/tracing.py", "exporter/opt/*.py", "graphs/contract.py", "bench/traced_graphs.py")
PACKAGES = ("keras", "numpy", "onnx", "onnx-ir", "tensorflow", "tf2onnx")


def traced_program(config: ModelConfig, phase: Phase) -> Program:
    """What `exporter.tracing.trace` gives for a model, traced once; each call gives a new copy."""
    origin = json.dumps([config.to_dict(), phase, _tracer()], sort_keys=True)
    path = FOLDER / f"{hashlib.sha256(origin.encode()).hexdigest()}.onnx"
    if not path.exists():
        program = trace(build_weightless_backbone(config), phase)
        with contextlib.suppress(OSError):  # a checkout that cannot be written to
            FOLDER.mkdir(parents=True, exist_ok=True)
            temporary = FOLDER / f".{path.stem}-{os.getpid()}"
            save_program(program, temporary)
            temporary.replace(path)
        return program
    return load_program(path, config)


@functools.cache
def _tracer() -> list[str]:
    """What traces: hashes of its sources, and versions of the packages that do the work."""
    files = sorted(path for pattern in SOURCES for path in REPOSITORY.glob(pattern))
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return [*hashes, *(f"{package} {version(package)}" for package in PACKAGES)]

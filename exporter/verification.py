"""Verification of a written bundle: valid graphs, the contract, and logits equal to Keras's.

Keras's logits come from its own layers (see `exporter.layer_walk`), with the weights streamed through
one layer at a time. ONNX Runtime's come from a process of its own that loads the bundle as a server
would. So neither needs the memory of a second model here.
"""

from __future__ import annotations

import enum
import io
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter import layer_walk
from exporter.errors import ExportError
from exporter.weights import WeightSource
from graphs.checks import check_graph
from graphs.contract import ModelConfig, Phase
from graphs.manifest import Manifest, Probe, read_manifest
from runtime.bundle import load_bundle
from runtime.system.child_process import python_command, python_environment

# Of the logits' standard deviation: the largest difference where weights are floats; the root of the
# mean square of all of them where they were quantized.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.01}
QUANTIZED_TOLERANCES = {"int8": 0.15, "int4": 0.6}
SMALL_ENOUGH_BYTES = 2 * 1024**3  # larger models have their logits compared only when asked to
PROMPT_LENGTHS = (12, 7)
DECODE_STEPS = 4


class Verify(enum.StrEnum):
    """How much of a bundle to verify.

    Logits beside Keras's, that it runs, graphs and hashes only, or nothing. The first two store a short
    run in the manifest, for a later check to repeat.
    """

    FULL = "full"
    RUN = "run"
    GRAPH = "graph"
    NONE = "none"


def verify_graphs(folder: Path) -> Manifest:
    """What loading checks, the ONNX checker and the contract of both graphs, and all sizes and hashes.

    Raises:
        ExportError: saying what is wrong.
    """
    try:
        manifest = read_manifest(folder)
        manifest.check_files(folder, weights_hash=False)
        # A graph that serves both phases is one of any number of tokens, as prefill's is.
        phases = {manifest.graphs[phase].name: phase for phase in (Phase.DECODE, Phase.PREFILL)}
        for name, phase in phases.items():
            check_graph(
                folder / name,
                manifest.model,
                phase,
                manifest.weights.name,
                manifest.cache_dtype,
                manifest.contract_revision,
            )
        load_bundle(folder)
    except Exception as error:  # the ONNX checker raises its own kinds
        raise ExportError(f"the written bundle failed verification: {error}") from error
    return manifest


@dataclass(frozen=True)
class LogitsComparison:
    """What `verify_logits` found.

    Attributes:
        difference: the maximum absolute one over the standard deviation of Keras's logits.
        mean_difference: the root of their mean square over it.
        peak_memory_bytes: of the process that ran the bundle.
        probe: what that process ran for the manifest.
    """

    difference: float
    mean_difference: float
    peak_memory_bytes: int
    probe: Probe | None


def verify_logits(
    folder: Path, config: ModelConfig, source: WeightSource, precision: str = "fp32"
) -> LogitsComparison:
    """Compares the bundle's logits with Keras's on a probe of two rows of different lengths.

    Args:
        folder: the bundle.
        config: sizes and switches of the model.
        source: the weights that were exported, in float32.
        precision: what the bundle stores them as, which decides the tolerance.

    Raises:
        ExportError: if the difference exceeds the tolerance, or the bundle cannot be run.
    """
    longest = min(max(PROMPT_LENGTHS) + DECODE_STEPS, config.max_sequence_length)
    steps = min(DECODE_STEPS, longest - 1)
    lengths = [min(length, longest - steps) for length in PROMPT_LENGTHS]
    generator = np.random.default_rng(0)
    token_ids = generator.integers(0, config.vocabulary_size, (len(lengths), longest))
    expected = layer_walk.logits(config, source, token_ids)
    wanted = np.stack(
        [expected[i, n - 1 : n + steps] for i, n in enumerate(lengths)]
    )  # [rows, 1 + steps, vocabulary]
    request = {"token_ids": token_ids.tolist(), "prompt_lengths": lengths, "steps": steps}
    found = _run(folder, request)
    errors = np.abs(wanted - found["logits"]) / wanted.std()
    largest, mean = float(errors.max()), float(np.sqrt(np.square(errors).mean()))
    quantized = QUANTIZED_TOLERANCES.get(precision)
    tolerance, difference = (TOLERANCES[precision], largest) if quantized is None else (quantized, mean)
    if not difference <= tolerance:
        raise ExportError(
            f"the written bundle failed verification: its logits differ from Keras's by "
            f"{difference:.2e} of their standard deviation; at most {tolerance} is allowed"
        )
    return LogitsComparison(largest, mean, int(found["peak_memory_bytes"]), _probe(found))


def run_probe(folder: Path) -> Probe | None:
    """Runs a bundle that has nothing to be compared with, in a process of its own.

    Raises:
        ExportError: if it cannot be run.
    """
    return _probe(_run(folder, None))


def _probe(answer: Mapping[str, np.ndarray]) -> Probe | None:
    values = json.loads(str(answer["probe"]))
    if values is None:
        return None
    return Probe.from_dict(values)


def _run(folder: Path, request: Mapping[str, object] | None) -> Mapping[str, np.ndarray]:
    """What a serving process computes; see `runtime.probe`."""
    result = subprocess.run(
        python_command("-m", "runtime.probe", str(folder), untrusted=[folder]),
        input=json.dumps(request).encode(),
        capture_output=True,
        env=python_environment(untrusted=[folder]),
        check=False,
    )
    if result.returncode:
        told = result.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise ExportError(f"the written bundle failed verification: it does not run. {told[-1]}")
    with np.load(io.BytesIO(result.stdout), allow_pickle=False) as answer:
        return dict(answer)

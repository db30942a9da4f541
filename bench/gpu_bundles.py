"""Bundles for measuring on a card: bound from traced graphs, by the exporter's own passes and recipes.

Neither Keras nor TensorFlow is imported. What it leaves out of an export: calibration of codes, the
tokenizer, verification.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.random_weights import OPT_DEVIATION
from bench.traced_graphs import Traced
from exporter.binding import needed_weights, plan_weights, write_bound_graph, write_weights
from exporter.presets.folder import read_preset
from exporter.progress import Progress
from exporter.quantization.recipes import Recipe, plan_recipes
from exporter.weights import CheckpointWeights
from graphs.contract import ModelConfig, Phase
from graphs.manifest import (
    GenerationDefaults,
    Manifest,
    target_cache_dtype,
    target_revision,
)
from graphs.passes import expected_counts, rewrite
from graphs.program import Program
from graphs.quantization import StoredTensor, phase_schemes
from graphs.versions import package_versions
from runtime import samplers
from runtime.decoder import Decoder
from runtime.generator import Generator
from runtime.samplers import GreedySampler

WEIGHTS_FILE = "weights.bin"
PACKAGES = ("opt-onnx", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu")
RANDOM_BYTES = 1 << 24  # that random tensors repeat: speed does not depend on them
AHEAD = 8  # recipes that are made at a time; each takes up to 1 GB in opt_6.7b's shape
CODE_DEVIATION = 4.6  # of codes of four bits


@dataclass(frozen=True)
class BundleKind:
    """How a bundle is exported and opened.

    Attributes:
        precision, target: as `opt-export` takes them.
        options: of `Generator.from_bundle`.
    """

    precision: str
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def graph_names(self) -> dict[Phase, str]:
        """The graph of each phase: plain ONNX has two, fused graphs serve both."""
        return {phase: str(phase) if self.target == "portable" else "model" for phase in Phase}

    @property
    def traced_phases(self) -> list[Phase]:
        """The phases whose traced graphs it is made from."""
        phases = {name: phase for phase, name in reversed(self.graph_names.items())}
        return sorted(phases.values())


_ON_CPU = {"packed_weights": False}
# What is measured for each precision of the table, by device. On the CPU, which is for trying the
# command out, bundles of float32 stand in for those of float16.
KINDS = {
    "cuda": {
        "fp32": BundleKind("fp32", "portable", {"allow_cpu_nodes": True}),
        "fp16": BundleKind("fp16", "cuda"),
        "int4": BundleKind("int4", "cuda"),
    },
    "cpu": {
        "fp32": BundleKind("fp32", "portable", _ON_CPU),
        "fp16": BundleKind("fp32", "cpu", _ON_CPU),
        "int4": BundleKind("int4", "cpu", _ON_CPU),
    },
}


def make_bundle(
    kind: BundleKind, config: ModelConfig, traced: Traced, checkpoint: Path | None, folder: Path
) -> None:
    """Makes a bundle.

    Args:
        kind: its precision and target.
        config: sizes of the model.
        traced: its traced graphs.
        checkpoint: a preset folder with its weights; `None` for random codes and floats of the right
            types and sizes, with which it is as fast and says nothing.
        folder: made; must not exist.
    """
    folder.mkdir(parents=True)
    schemes = phase_schemes(kind.precision, target=kind.target)
    programs: dict[str, Program] = {}
    for phase, name in kind.graph_names.items():
        if name not in programs:
            programs[name] = traced(phase)
            counts = rewrite(programs[name], kind.target, schemes[phase])
            expected = expected_counts(config, kind.target, schemes[phase])
            if counts != expected:
                raise RuntimeError(
                    f"{name} was rewritten as {counts}, not as {expected}; trace it again"
                )
    with contextlib.ExitStack() as stack:
        if checkpoint is None:
            recipes = random_recipes(list(programs.values()))
        else:
            source = stack.enter_context(contextlib.closing(CheckpointWeights(read_preset(checkpoint))))
            recipes = plan_recipes(config, source, needed_weights(programs.values()))
        extents = plan_weights(recipes)
        pool = stack.enter_context(ThreadPoolExecutor(AHEAD))
        ready = read_ahead(recipes, pool)
        weights = write_weights(ready, extents, folder / WEIGHTS_FILE, Progress(quiet=True))
    entries = {
        name: write_bound_graph(program, extents, WEIGHTS_FILE, folder / f"{name}.onnx")
        for name, program in programs.items()
    }
    Manifest(
        model=config,
        precision=kind.precision,
        target=kind.target,
        cache_dtype=target_cache_dtype(kind.target, kind.precision),
        graphs={phase: entries[name] for phase, name in kind.graph_names.items()},
        weights=weights,
        tokenizer=(),
        generation=GenerationDefaults(config.max_sequence_length, samplers.serialize(GreedySampler())),
        source={"preset": "random weights", "format": "none" if checkpoint is None else "huggingface"},
        versions=package_versions(PACKAGES),
        contract_revision=target_revision(kind.target),
    ).write(folder)


def open_bundle(folder: Path, kind: BundleKind, device: str) -> tuple[Generator, Decoder]:
    """A bundle's generator and the decoder in it, whose single steps and logits are measured."""
    generator = Generator.from_bundle(folder, device=device, **kind.options)
    generator.compile("greedy")
    return generator, generator._decoder


def read_ahead(recipes: list[Recipe], pool: ThreadPoolExecutor) -> list[Recipe]:
    """The same recipes, of which several are made at a time, ahead of the one that is written.

    An export, which is to take little memory, makes one at a time: several times as long where there
    are many cores.
    """
    pending: dict[int, Future[list[np.ndarray]]] = {}

    def make(index: int) -> Iterator[np.ndarray]:
        for i in range(index, min(index + AHEAD, len(recipes))):
            if i not in pending:
                pending[i] = pool.submit(_made, recipes[i])
        return iter(pending.pop(index).result())

    return [replace(recipe, make=functools.partial(make, i)) for i, recipe in enumerate(recipes)]


def _made(recipe: Recipe) -> list[np.ndarray]:
    return list(recipe.make())


def random_recipes(programs: list[Program]) -> list[Recipe]:
    """Random values for all that the graphs need, whatever it is."""
    needed = needed_weights(programs)
    values = {name: v for program in programs for name, v in program.weights.items() if name in needed}
    recipes = []
    for name, value in values.items():
        assert value.dtype is not None
        assert value.shape is not None
        tensor = StoredTensor(name, str(value.dtype.numpy()), value.shape.numpy())
        recipes.append(Recipe((tensor,), functools.partial(random_values, tensor)))
    return recipes


def random_values(tensor: StoredTensor) -> Iterator[np.ndarray]:
    """A tensor's values in pieces: any codes, scales with which they are of OPT's deviation, floats."""
    dtype = np.dtype(tensor.dtype)
    size = int(np.prod(tensor.shape, dtype=object))
    generator = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    count = min(size, RANDOM_BYTES // dtype.itemsize)
    if dtype.kind in "iu":
        block = generator.integers(0, 256, count, np.uint8).view(dtype)
    else:
        center = 1.0 if tensor.name.split(".")[0].endswith("/gamma") else 0.0
        floats = center + OPT_DEVIATION * generator.standard_normal(count, np.float32)
        if tensor.name.endswith("scales"):
            floats = OPT_DEVIATION / CODE_DEVIATION * (1 + 0.1 * generator.random(count, np.float32))
        block = floats.astype(dtype)
    for start in range(0, size, count):
        yield block[: size - start]

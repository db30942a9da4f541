"""Graphs of target cuda bound to weights as an export binds them, and run on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from graphs.contract import ModelConfig, Phase, Revision, graph_inputs
from graphs.program import Program
from tests.graphs.pass_helpers import Arrays, contract_inputs

WEIGHTS_FILE = "weights.bin"
NARROW = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


class RandomWeights:
    """A source of weights that keep the size of activations at any width."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.values = {}
        for name, shape in shapes.items():
            scale = np.float32(shape[0] ** -0.5 if name.endswith("kernel") else 0.2)
            drawn = generator.standard_normal(shape, np.float32) * scale
            self.values[name] = drawn + np.float32(name.endswith("gamma"))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: value.shape for name, value in self.values.items()}

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        yield self.values[name]

    def close(self) -> None:
        pass


class NoWeights:
    """A source of nothing but shapes."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes


def write_graph(folder: Path, program: Program, source: RandomWeights | NoWeights) -> Path:
    """Writes a rewritten graph and its weights as an export does; returns the graph's path.

    Without weights their file is one hole of the right size.
    """
    from exporter.binding import (
        needed_weights,
        plan_weights,
        planned_bytes,
        write_bound_graph,
        write_weights,
    )
    from exporter.progress import Progress
    from exporter.quantization.recipes import plan_recipes

    recipes = plan_recipes(program.config, source, needed_weights([program]))
    extents = plan_weights(recipes)
    folder.mkdir(exist_ok=True)
    if isinstance(source, NoWeights):
        with (folder / WEIGHTS_FILE).open("wb") as file:
            file.truncate(planned_bytes(extents))
    else:
        write_weights(recipes, extents, folder / WEIGHTS_FILE, Progress(quiet=True))
    path = folder / "model.onnx"
    write_bound_graph(program, extents, WEIGHTS_FILE, path)
    return path


def dequantized(model: ModelConfig, source: RandomWeights, bits: int) -> RandomWeights:
    """The weights that a source's codes in blocks stand for, unpacked by hand."""
    from exporter.quantization.recipes import plan_recipes

    needed = {f"{name}.int{bits}.fp16" for name in source.shapes}
    found = copy(source)
    found.values = dict(source.values)
    for recipe in plan_recipes(model, source, needed):
        codes, scales, *packed_zeros = (np.concatenate(parts) for parts in _parts(recipe))
        zeros: Any = 128
        if bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
            (packed,) = packed_zeros
            both = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
            zeros = both[:, : codes.shape[1], None].astype(np.float32)
        blocks = (codes.astype(np.float32) - zeros) * scales.astype(np.float32)[..., None]
        name = recipe.tensors[0].name.removesuffix(f".int{bits}.fp16")
        found.values[name] = blocks.reshape(len(blocks), -1).T
    return found


def _parts(recipe: Any) -> list[list[np.ndarray]]:
    """The arrays of each tensor of a recipe."""
    arrays, found = recipe.make(), []
    for tensor in recipe.tensors:
        parts: list[np.ndarray] = []
        while sum(part.size for part in parts) < np.prod(tensor.shape):
            parts.append(next(arrays))
        found.append(parts)
    return found


# === Runs ===


class Runner:
    """A graph on ONNX Runtime's CPU kernels, with no rewriting of its own."""

    def __init__(self, model: Path | Any) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def __call__(self, feeds: Arrays) -> Arrays:
        """The outputs by name."""
        names = [output.name for output in self._session.get_outputs()]
        wanted = {value.name for value in self._session.get_inputs()}
        values = self._session.run(names, {name: feeds[name] for name in wanted})
        return dict(zip(names, values, strict=True))


def device_inputs(
    config: ModelConfig,
    past: list[int],
    new: list[int],
    capacity: int = 12,
    cache_dtype: Any = np.float16,
    temperatures: Sequence[float] | None = None,
) -> tuple[Arrays, Arrays]:
    """The same call by both revisions, its cache full of noise that both dtypes hold."""
    host = contract_inputs(config, Phase.PREFILL, past, new, capacity)
    names = [name for name in host if name.startswith("past_key_values")]
    caches = {name: host[name].astype(cache_dtype) for name in names}
    host |= {name: value.astype(np.float32) for name, value in caches.items()}
    lengths, last = np.array(past), np.maximum(new, 1) - 1
    batch, sequence = host["input_ids"].shape
    positions = lengths[:, None] + np.arange(sequence)
    total = capacity if sequence == 1 else sequence + max(past)
    device = {
        "input_ids": host["input_ids"],
        "positions": np.minimum(positions, config.max_sequence_length - 1),
        "output_positions": host["output_positions"],
        "last_positions": (lengths + last).astype(np.int32),
        "total_length": np.array([total], np.int32),
        "inverse_temperatures": np.float32(1 / np.array(temperatures or [1.0] * batch))[:, None],
        **caches,
    }
    specs = graph_inputs(config, Phase.PREFILL, np.dtype(cache_dtype).name, Revision.DEVICE)
    assert [(name, str(value.dtype)) for name, value in device.items()] == [
        (spec.name, spec.dtype) for spec in specs
    ]
    return host, device


def rounding_model(path: Path) -> Any:
    """A graph of 16 bits in float32, with every result of a node rounded to the 16 bits.

    As kernels compute that sum in float32. CPUs have none for bfloat16, and ONNX Runtime's for float16
    keep results in float32 from one node to the next.
    """
    model = onnx.load(path)
    graph = model.graph
    del graph.value_info[:]
    kinds: dict[str, int] = {}
    for value in [*graph.input, *graph.output]:
        tensor = value.type.tensor_type
        if tensor.elem_type in NARROW:
            kinds[value.name], tensor.elem_type = tensor.elem_type, onnx.TensorProto.FLOAT
    for tensor in graph.initializer:
        if tensor.data_type in NARROW:
            kinds[tensor.name] = tensor.data_type
            wide = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    ends = {value.name for value in graph.output}
    nodes = []
    for node in list(graph.node):
        nodes.append(node)
        found = {kinds[name] for name in node.input if name in kinds}
        if not found or node.op_type == "Cast":
            continue
        (kind,) = found
        for i, name in enumerate(node.output):
            if name and name not in ends:
                kinds[name] = kind
                node.output[i] = f"{name}/wide"
                narrow = onnx.helper.make_node("Cast", [f"{name}/wide"], [f"{name}/narrow"], to=kind)
                nodes += [narrow, onnx.helper.make_node("Cast", [f"{name}/narrow"], [name], to=1)]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def rounded(values: Arrays, storage: str) -> Arrays:
    """Values as they are in 16 bits."""
    dtype: Any = ml_dtypes.bfloat16 if storage == "bf16" else np.float16
    return {name: value.astype(dtype).astype(np.float32) for name, value in values.items()}


def kinds_of(path: Path) -> dict[str, str]:
    """The dtype of every weight that a graph file reads, by name."""
    graph = ir.load(path).graph
    return {
        name: str(value.dtype.numpy())
        for name, value in graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor) and value.dtype is not None
    }

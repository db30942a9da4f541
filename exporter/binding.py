"""Binding: streams weights into one file and points the graphs' weights into it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from exporter.progress import Progress
from exporter.quantization.recipes import Recipe
from graphs.manifest import FileEntry
from graphs.program import Program
from graphs.quantization import StoredTensor

PAGE = 4096  # large tensors begin on pages of their own, so that each can be memory-mapped
WORD = 64  # what small ones are aligned to


@dataclass(frozen=True)
class Extent:
    """Where a tensor lies in the weights file."""

    offset: int
    length: int


def plan_weights(recipes: Iterable[Recipe]) -> dict[str, Extent]:
    """Lays the recipes' tensors out one after another, aligned."""
    extents = {}
    offset = 0
    for recipe in recipes:
        for tensor in recipe.tensors:
            length = _length(tensor)
            alignment = PAGE if length >= PAGE else WORD
            offset = -(-offset // alignment) * alignment
            extents[tensor.name] = Extent(offset, length)
            offset += length
    return extents


def _length(tensor: StoredTensor) -> int:
    return int(np.prod(tensor.shape, dtype=object)) * np.dtype(tensor.dtype).itemsize


def planned_bytes(extents: dict[str, Extent]) -> int:
    """Size of the weights file."""
    return max(extent.offset + extent.length for extent in extents.values())


def needed_weights(programs: Iterable[Program]) -> set[str]:
    """Names of the tensors that graphs read from the weights file."""
    return {
        program.views.get(name, name)
        for program in programs
        for name, value in program.weights.items()
        if value.uses()
    }


def write_weights(
    recipes: Iterable[Recipe], extents: dict[str, Extent], path: Path, progress: Progress
) -> FileEntry:
    """Makes every tensor and writes it at its place; returns the file's entry."""
    digest = hashlib.sha256()
    position = 0
    with path.open("wb") as file:

        def write(data: bytes | memoryview) -> None:
            nonlocal position
            file.write(data)
            digest.update(data)
            position += len(data)
            progress.advance(len(data))

        for recipe in recipes:
            arrays = recipe.make()
            for tensor in recipe.tensors:
                extent = extents[tensor.name]
                write(b"\0" * (extent.offset - position))
                end = extent.offset + extent.length
                while position < end and (array := next(arrays, None)) is not None:
                    if array.dtype != tensor.dtype:
                        raise AssertionError(f"{tensor.name} is {tensor.dtype}, got {array.dtype}")
                    # As bytes: buffers have no bfloat16.
                    write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                if position != end:
                    done = position - extent.offset
                    raise AssertionError(f"{tensor.name}: {done} of {extent.length} bytes")
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(path.name, position, digest.hexdigest())


def write_bound_graph(
    program: Program, extents: dict[str, Extent], weights_name: str, path: Path
) -> FileEntry:
    """Makes the program's weights initializers that point into the weights file; saves the graph."""
    for name, value in program.weights.items():
        if not value.uses():  # a weight that this graph does not need
            continue
        assert value.dtype is not None
        assert value.shape is not None
        extent = extents[program.views.get(name, name)]
        value.const_value = ir.ExternalTensor(
            weights_name,
            extent.offset,
            extent.length,
            value.dtype,
            shape=value.shape,
            name=name,
            base_dir=path.parent,
        )
        program.graph.initializers[name] = value
    program.model.producer_name = "opt-onnx"
    onnx.save_model(ir.to_proto(program.model), str(path))
    return FileEntry.of(path)

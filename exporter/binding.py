"""Binding: streams weights into one file and points the graphs' weights into it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from exporter.progress import Progress
from exporter.weights import WeightSource
from graphs.manifest import FileEntry
from graphs.program import Program

ALIGNMENT = 4096  # so that every weight can be memory-mapped on its own


@dataclass(frozen=True)
class Extent:
    """Where a weight lies in the weights file."""

    offset: int
    length: int
    shape: tuple[int, ...]


def plan_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Extent]:
    """Lays the weights out one after another, aligned; float32."""
    extents = {}
    offset = 0
    for name, shape in shapes.items():
        length = int(np.prod(shape, dtype=object)) * 4
        extents[name] = Extent(offset, length, shape)
        offset = -(-(offset + length) // ALIGNMENT) * ALIGNMENT
    return extents


def planned_bytes(extents: dict[str, Extent]) -> int:
    """Size of the weights file."""
    return max(extent.offset + extent.length for extent in extents.values())


def write_weights(
    source: WeightSource, extents: dict[str, Extent], path: Path, progress: Progress
) -> FileEntry:
    """Streams every weight into the file, in the order of the plan; returns its entry."""
    digest = hashlib.sha256()
    position = 0
    with path.open("wb") as file:

        def write(data: bytes | memoryview) -> None:
            nonlocal position
            file.write(data)
            digest.update(data)
            position += len(data)
            progress.advance(len(data))

        for name, extent in extents.items():
            write(b"\0" * (extent.offset - position))
            for block in source.blocks(name):
                write(block.data.cast("B"))
            if position != extent.offset + extent.length:
                raise AssertionError(f"{name}: {position - extent.offset} of {extent.length} bytes")
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
        extent = extents[name]
        value.const_value = ir.ExternalTensor(
            weights_name,
            extent.offset,
            extent.length,
            ir.DataType.FLOAT,
            shape=ir.Shape(extent.shape),
            name=name,
            base_dir=path.parent,
        )
        program.graph.initializers[name] = value
    program.model.producer_name = "opt-onnx"
    onnx.save_model(ir.to_proto(program.model), str(path))
    return FileEntry.of(path)

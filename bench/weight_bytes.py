"""How many bytes of weights a decode step reads."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from graphs.contract import Phase
from graphs.manifest import read_manifest

LOOKUPS = ("Gather", "GatherBlockQuantized")  # these read a row for each token, not the table


def bundle_weight_bytes(bundle: Path) -> int:
    """Bytes of the weights that a bundle's decode graph computes with, each counted once.

    A bundle may hold more than that: tables that only rows are looked up in, weights of the prefill
    graph alone.
    """
    path = bundle / read_manifest(bundle).graphs[Phase.DECODE].name
    graph = onnx.load(path, load_external_data=False).graph
    computed = {name for node in graph.node if node.op_type not in LOOKUPS for name in node.input}
    places = {
        (info.location, info.offset or 0): info.length or 0
        for tensor in graph.initializer
        if tensor.name in computed and uses_external_data(tensor)
        for info in [ExternalDataInfo(tensor)]
    }
    return sum(places.values())


def folder_bytes(folder: Path) -> int:
    """Bytes of all files of a folder that a system loads: its weights and little else."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

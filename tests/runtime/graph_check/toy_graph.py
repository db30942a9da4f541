"""The toy bundle's graph, which tests change."""

from __future__ import annotations

import pytest

from graphs.contract import Phase
from graphs.manifest import read_manifest
from runtime.graph_check.graph_file import check_graph_file
from runtime.graph_check.limits import GraphLimits
from runtime.graph_check.wire_format import GraphFileError
from tests.runtime.graph_check.graph_bytes import GRAPH, NODE, TOY, fields

DATA = (TOY / "prefill.onnx").read_bytes()
MANIFEST = read_manifest(TOY)
SIZE = MANIFEST.weights.size
LIMITS = GraphLimits(MANIFEST.model, Phase.PREFILL, "float32", "weights.bin", SIZE)
NODES = sum(number == NODE for number, _ in fields(bytes(dict(fields(DATA))[GRAPH])))  # type: ignore[arg-type]


def refused(data: bytes, why: str, limits: GraphLimits = LIMITS) -> None:
    with pytest.raises(GraphFileError, match=why):
        check_graph_file(data, limits)

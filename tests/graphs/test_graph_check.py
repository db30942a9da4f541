"""The runtime's check takes every graph that the passes write, and knows no other operators."""

from __future__ import annotations

from pathlib import Path

import pytest

for package in ("onnx", "onnx_ir", "tensorflow", "keras", "tf2onnx"):
    pytest.importorskip(package)

import onnx  # noqa: E402

from runtime.graph_check.graph_file import check_graph_file  # noqa: E402
from runtime.graph_check.messages import OPSETS  # noqa: E402
from runtime.graph_check.operators import OPERATORS  # noqa: E402
from tests.graphs.real_graphs import MODELS, graphs  # noqa: E402

# `bench.dynamic_int8` makes bundles with these.
OF_BENCH = {"DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"}


@pytest.mark.slow
def test_what_the_passes_write_is_taken_and_nothing_else_is_known(tmp_path: Path) -> None:
    found: dict[tuple[str, str], set[str]] = {}
    opsets = set()
    for config in MODELS.values():
        for path, limits in graphs(tmp_path, config):
            room = check_graph_file(path.read_bytes(), limits)
            assert 0 < room < 3 * limits.weights_size
            proto = onnx.load(path, load_external_data=False)
            opsets |= {(opset.domain, opset.version) for opset in proto.opset_import}
            for node in proto.graph.node:
                names = found.setdefault((node.domain, node.op_type), set())
                names |= {attribute.name for attribute in node.attribute}
    expected = {key: set(o.attributes) for key, o in OPERATORS.items() if key[1] not in OF_BENCH}
    assert found == expected
    assert opsets == set(OPSETS.items())

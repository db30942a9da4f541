"""The runtime's check takes every graph that the passes write, and knows no other operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

for package in ("onnx", "onnx_ir", "tensorflow", "keras", "tf2onnx"):
    pytest.importorskip(package)

import onnx  # noqa: E402

from graphs.contract import ModelConfig, Phase, Revision  # noqa: E402
from graphs.manifest import target_cache_dtype  # noqa: E402
from graphs.passes import rewrite  # noqa: E402
from graphs.passes.attention import HEAD_DIM_MULTIPLE  # noqa: E402
from graphs.quantization import FLOAT, Scheme, phase_schemes  # noqa: E402
from runtime.graph_check.graph_file import check_graph_file  # noqa: E402
from runtime.graph_check.limits import GraphLimits  # noqa: E402
from runtime.graph_check.messages import OPSETS  # noqa: E402
from runtime.graph_check.operators import OPERATORS  # noqa: E402
from tests.graphs.cuda_helpers import WEIGHTS_FILE, NoWeights, write_graph  # noqa: E402
from tests.graphs.pass_helpers import trace_model  # noqa: E402

TOY = ModelConfig(512, 1, 4, 32, 64, 64)  # a vocabulary that is ranked in parts
# Each switch, and heads that the fused attention does not take.
MODELS = {
    "OPT": TOY,
    "opt-350m": replace(TOY, embedding_dim=16, norm_first=False, final_norm=False),
    "Galactica": replace(TOY, activation="gelu", use_bias=False, norm_affine=False),
    "other": replace(TOY, activation="silu", embedding_dim=48, tied_head=False),
    "narrow heads": replace(TOY, hidden_dim=16, activation="gelu_tanh", tied_head=False),
    "three layers": replace(TOY, num_layers=3, vocabulary_size=300),
}
TARGETS = [
    ("portable", FLOAT),
    ("cpu", FLOAT),
    ("cpu", Scheme("int8", "int8")),
    ("cpu", Scheme("int4", "int4")),
    ("cpu", Scheme("int8", "int4")),
    *(
        ("cuda", phase_schemes(name, target="cuda")[Phase.PREFILL])
        for name in ("fp16", "bf16", "int8", "int4")
    ),
]
# `bench.dynamic_int8` makes bundles with these.
OF_BENCH = {"DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"}


def graphs(folder: Path, config: ModelConfig) -> Iterator[tuple[Path, GraphLimits]]:
    """The graph of each phase, target and precision, over weights of no values."""
    for phase in Phase:
        model = trace_model(config, phase)
        for target, scheme in TARGETS:
            if target == "cuda" and (phase is Phase.DECODE or config.head_dim % HEAD_DIM_MULTIPLE):
                continue  # one graph of any number of tokens, of heads that its attention takes
            program = model.program()
            rewrite(program, target, scheme)
            path = write_graph(folder, program, NoWeights(model.weight_shapes))
            cache = target_cache_dtype(target, scheme.floats)
            revision = Revision.DEVICE if target == "cuda" else Revision.HOST
            size = (folder / WEIGHTS_FILE).stat().st_size
            yield path, GraphLimits(config, phase, cache, WEIGHTS_FILE, size, revision)


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

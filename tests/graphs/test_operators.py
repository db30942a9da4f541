"""The operators that bundles may hold are those that the passes write, over all models and targets."""

from __future__ import annotations

from dataclasses import replace

import pytest

for package in ("onnx", "onnx_ir", "tensorflow", "keras", "tf2onnx"):
    pytest.importorskip(package)

import onnx_ir as ir  # noqa: E402

from graphs.contract import ModelConfig, Phase  # noqa: E402
from graphs.operators import DOMAINS, OPERATORS  # noqa: E402
from graphs.passes import rewrite  # noqa: E402
from graphs.passes.attention import HEAD_DIM_MULTIPLE  # noqa: E402
from graphs.quantization import FLOAT, Scheme, phase_schemes  # noqa: E402
from tests.graphs.pass_helpers import trace_model  # noqa: E402

TOY = ModelConfig(512, 1, 4, 32, 64, 64)  # a vocabulary that is ranked in parts
# Each switch, and heads that the fused attention does not take.
MODELS = {
    "OPT": TOY,
    "opt-350m": replace(TOY, embedding_dim=16, norm_first=False, final_norm=False),
    "Galactica": replace(TOY, activation="gelu", use_bias=False, norm_affine=False),
    "other": replace(TOY, activation="silu", embedding_dim=48, tied_head=False),
    "narrow heads": replace(TOY, hidden_dim=16, activation="gelu_tanh", tied_head=False),
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


def test_the_list_is_what_the_passes_write() -> None:
    found: dict[tuple[str, str], set[str]] = {}
    domains = set()
    for config in MODELS.values():
        for phase in Phase:
            model = trace_model(config, phase)
            for target, scheme in TARGETS:
                if target == "cuda" and (phase is Phase.DECODE or config.head_dim % HEAD_DIM_MULTIPLE):
                    continue  # one graph of any number of tokens, of heads that its attention takes
                program = model.program()
                rewrite(program, target, scheme)
                proto = ir.to_proto(program.model)
                domains |= {opset.domain for opset in proto.opset_import}
                for node in proto.graph.node:
                    names = found.setdefault((node.domain, node.op_type), set())
                    names |= {attribute.name for attribute in node.attribute}
    expected = {key: set(names) for key, names in OPERATORS.items() if key[1] not in OF_BENCH}
    assert found == expected
    assert domains == set(DOMAINS)

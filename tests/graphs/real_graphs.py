"""Every kind of graph that this project writes: all switches, targets, precisions and phases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from graphs.contract import ModelConfig, Phase, Revision
from graphs.manifest import target_cache_dtype
from graphs.passes import rewrite
from graphs.passes.attention import HEAD_DIM_MULTIPLE
from graphs.quantization import FLOAT, Scheme, phase_schemes
from runtime.graph_check.limits import GraphLimits
from tests.graphs.cuda_helpers import WEIGHTS_FILE, NoWeights, write_graph
from tests.graphs.pass_helpers import trace_model

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

"""Target cuda: what the passes make of traced models, and that it computes what float32 does.

ONNX Runtime's CPU kernels run the same graphs. bfloat16, which they do not know, is compared in float32
with every result of a node rounded to bfloat16; so is float16, since those kernels round less often
than a GPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for package in ("ml_dtypes", "onnx", "onnx_ir", "onnxruntime", "tensorflow", "keras", "tf2onnx"):
    pytest.importorskip(package)

import ml_dtypes  # noqa: E402
import onnx_ir as ir  # noqa: E402

from exporter.presets.table import BUILTIN_PRESETS  # noqa: E402
from exporter.verification import QUANTIZED_TOLERANCES, TOLERANCES  # noqa: E402
from graphs.checks import check_graph  # noqa: E402
from graphs.contract import ModelConfig, Phase, Revision  # noqa: E402
from graphs.manifest import target_cache_dtype  # noqa: E402
from graphs.passes import expected_counts, passes, rewrite  # noqa: E402
from graphs.program import Program  # noqa: E402
from graphs.quantization import phase_schemes  # noqa: E402
from runtime.graph_check.graph_file import check_graph_file  # noqa: E402
from runtime.graph_check.limits import GraphLimits  # noqa: E402
from tests.graphs.cuda_helpers import (  # noqa: E402
    WEIGHTS_FILE,
    NoWeights,
    RandomWeights,
    Runner,
    dequantized,
    device_inputs,
    kinds_of,
    rounding_model,
    write_graph,
)
from tests.graphs.pass_helpers import (  # noqa: E402
    Arrays,
    TracedModel,
    node_list,
    ops,
    readable,
    trace_model,
)

PRECISIONS = ("fp16", "bf16", "int8", "int4")
SCHEMES = {name: phase_schemes(name, target="cuda")[Phase.PREFILL] for name in PRECISIONS}
TOY = ModelConfig(512, 2, 4, 32, 64, 64)  # a vocabulary that is ranked in parts
# Each switch; the number of norms.
MODELS = {
    "opt": (TOY, 5),
    "opt-350m": (replace(TOY, embedding_dim=16, norm_first=False, final_norm=False), 4),
    "galactica": (replace(TOY, num_layers=1, activation="gelu", use_bias=False, norm_affine=False), 3),
    "other": (
        replace(TOY, num_layers=1, activation="silu", embedding_dim=48, tied_head=False),
        3,
    ),
}
# Weights that become floats of 16 bits, and matrices that do not where there are codes.
WEIGHTS = {"opt": (28, 8), "opt-350m": (28, 8), "galactica": (6, 4), "other": (19, 4)}
# Two norms with the sums and biases before them, four products, attention, an activation; and two
# biases, which MatMulNBits adds itself.
LAYER_NODES = {"fp16": 10, "bf16": 10, "int8": 8, "int4": 8}
# All that may be in a graph with OPT's own switches. ONNX Runtime has kernels for them on CUDA, but
# leaves to the CPU what follows a Shape; there is none, nor any control flow.
OPERATORS = {
    *("Add", "Cast", "Exp", "Gather", "GatherElements", "Gemm", "GroupQueryAttention", "Identity"),
    *("Mul", "ReduceSum", "Relu", "Reshape", "SkipLayerNormalization", "Slice", "Sub", "TopK"),
}
PRODUCTS = {"fp16": "FusedMatMul", "bf16": "FusedMatMul", "int8": "MatMulNBits", "int4": "MatMulNBits"}
# Of other switches: a norm of no sum, products with projections, activations, constants of norms.
SWITCH_OPERATORS = {"LayerNormalization", "MatMul", "Erf", "Sigmoid"}


def preset_shape(preset: str, layers: int = 1, **changes: int) -> ModelConfig:
    """A preset's heads and widths, in as few layers and tokens as show them."""
    few = {"num_layers": layers, "vocabulary_size": 2048, "max_sequence_length": 64, **changes}
    return replace(BUILTIN_PRESETS[preset].config, **few)


Trace = Callable[[ModelConfig], TracedModel]


@pytest.fixture(scope="module")
def traced() -> Trace:
    """Traces a model once."""
    found: dict[ModelConfig, TracedModel] = {}

    def model(config: ModelConfig) -> TracedModel:
        if config not in found:
            found[config] = trace_model(config, Phase.PREFILL)
        return found[config]

    return model


def rewritten(model: TracedModel, precision: str) -> Program:
    program = model.program()
    rewrite(program, "cuda", SCHEMES[precision])
    return program


# === What is matched ===


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_every_pass_matches_as_often_as_a_model_has_it(
    traced: Trace, name: str, precision: str
) -> None:
    config, norms = MODELS[name]
    weights, matrices = WEIGHTS[name]
    blocks = precision in ("int8", "int4")
    program = traced(config).program()
    counts = rewrite(program, "cuda", SCHEMES[precision])
    assert counts == {
        "fuse_layer_norm": norms,
        "fuse_head": 1,
        "fuse_attention": config.num_layers,
        "keep_rows": config.num_layers,
        "take_positions": config.num_layers,
        "fuse_skip_norm": norms,
        **({f"block_layers_{precision}": matrices} if blocks else {}),
        ("narrow_to_bf16" if precision == "bf16" else "narrow_to_fp16"): (weights - matrices * blocks),
        "rank_logits": 1,
    }
    assert counts == expected_counts(config, "cuda", SCHEMES[precision])
    names = [run.__name__ for run in passes("cuda", SCHEMES[precision])]
    assert names == list(counts)
    found = set(ops(program.graph))
    wanted = OPERATORS | {PRODUCTS[precision]}
    if name == "opt":
        assert found == wanted
    else:
        assert found - wanted <= SWITCH_OPERATORS
    assert ops(program.graph)[PRODUCTS[precision]] == matrices


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_a_second_time_there_is_nothing_to_do(traced: Trace, name: str, precision: str) -> None:
    config, scheme = MODELS[name][0], SCHEMES[precision]
    again = ir.from_proto(ir.to_proto(rewritten(traced(config), precision).model))
    program = Program(again, {}, config)
    before = node_list(program.graph)
    assert rewrite(program, "cuda", scheme) == dict.fromkeys(expected_counts(config, "cuda", scheme), 0)
    assert node_list(program.graph) == before


# === The graphs of the presets ===


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_nodes_of_a_layer(traced: Trace, precision: str) -> None:
    one, two = (
        len(rewritten(traced(preset_shape("opt_125m_en", layers)), precision).graph)
        for layers in (1, 2)
    )
    assert two - one == LAYER_NODES[precision]


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision", [pytest.param(p, marks=() if p == "int4" else pytest.mark.slow) for p in PRECISIONS]
)
def test_every_width_is_rewritten_into_the_same_graph(traced: Trace, precision: str) -> None:
    found = {
        preset: len(rewritten(traced(preset_shape(preset)), precision).graph)
        for preset in BUILTIN_PRESETS
    }
    assert len(set(found.values())) == 1, found


def checked(path: Path, config: ModelConfig, precision: str) -> None:
    """The graph passes ONNX's checker, the contract's, and the one for strangers' files."""
    cache = target_cache_dtype("cuda", precision)
    check_graph(path, config, Phase.PREFILL, WEIGHTS_FILE, cache, Revision.DEVICE)
    size = (path.parent / WEIGHTS_FILE).stat().st_size
    limits = GraphLimits(config, Phase.PREFILL, cache, WEIGHTS_FILE, size, Revision.DEVICE)
    check_graph_file(path.read_bytes(), limits)


@pytest.mark.parametrize(
    ("preset", "precision"),
    [
        pytest.param(preset, precision, marks=() if i in (0, j) else pytest.mark.slow)
        for i, preset in enumerate(BUILTIN_PRESETS)
        for j, precision in enumerate(PRECISIONS)
    ],
)
def test_the_graph_of_every_preset_passes_the_checks(
    traced: Trace, preset: str, precision: str, tmp_path: Path
) -> None:
    config = preset_shape(preset)
    model = traced(config)
    program = model.program()
    counts = rewrite(program, "cuda", SCHEMES[precision])
    assert counts == expected_counts(config, "cuda", SCHEMES[precision])
    assert set(ops(program.graph)) == OPERATORS | {PRODUCTS[precision]}
    path = write_graph(tmp_path, program, NoWeights(model.weight_shapes))
    checked(path, config, precision)
    narrow = "bfloat16" if precision == "bf16" else "float16"
    kinds = kinds_of(path)
    codes = {name for name, kind in kinds.items() if kind == "uint8"}
    assert {kinds[name] for name in set(kinds) - codes} == {narrow}
    # Codes, and zero points of those of 4 bits, of the four matrices of the one layer.
    assert len(codes) == {"int8": 4, "int4": 8}.get(precision, 0)


# === What is computed ===

CALLS = [
    ([0], [1]),
    ([0, 0], [5, 3]),
    ([0, 0, 0], [5, 3, 0]),
    ([4], [5]),  # a later chunk of one row
    ([10], [2]),
    ([3, 0, 11], [1, 1, 1]),
    ([3, 7], [0, 1]),
    ([0, 0], [1, 1]),
]
# Of the standard deviation of what float32 gives: the largest difference of the logits, which an export
# allows, of the hidden states and of each cache.
LARGEST = {"fp16": (0.01, 0.02, 0.02), "bf16": (0.08, 0.12, 0.12)}
# The root of the mean square of all differences, of each of them.
ROOT_MEAN_SQUARE = {"int8": (0.03, 0.03, 0.03), "int4": (0.4, 0.4, 0.4)}


def errors(wanted: Arrays, found: Arrays, past: list[int], new: list[int], largest: bool) -> Arrays:
    """Of the logits, hidden states and caches, over what the wanted values deviate by."""
    found = {name: np.asarray(found[name], np.float32) for name in wanted}
    wanted, found = readable(wanted, past, new), readable(found, past, new)
    kinds: dict[str, list[float]] = {}
    for name, value in wanted.items():
        if not value.size:
            continue
        difference = np.abs(found[name] - value)
        error = difference.max() if largest else np.sqrt(np.square(difference).mean())
        kinds.setdefault(name.split(".")[0], []).append(float(error / value.std()))
    return {kind: np.array(max(values)) for kind, values in kinds.items()}


def assert_near(found: Arrays, limits: tuple[float, float, float]) -> None:
    for kind, limit in zip(("logits", "hidden_states", "present"), limits, strict=True):
        assert found[kind] <= limit, (kind, found)


def assert_ranked(config: ModelConfig, inputs: Arrays, outputs: Arrays) -> None:
    """The best logits are those of the logits, to the bit, and their weights sum over all of them."""
    logits, best, ids = (outputs[name] for name in ("logits", "best_logits", "best_ids"))
    assert best.shape == ids.shape == (len(logits), min(64, config.vocabulary_size))
    np.testing.assert_array_equal(best, -np.sort(-logits, axis=1)[:, : best.shape[1]])
    np.testing.assert_array_equal(np.take_along_axis(logits, ids, axis=1), best)
    assert all(len(set(row)) == len(row) for row in ids.tolist())
    shifted = (logits - best[:, :1]).astype(np.float64) * inputs["inverse_temperatures"]
    np.testing.assert_allclose(outputs["weight_totals"], np.exp(shifted).sum(axis=1), rtol=1e-5)


def compare(
    model: TracedModel,
    precision: str,
    folder: Path,
    *,
    rounding: bool,
    source: RandomWeights,
    like: RandomWeights | None = None,
    calls: list[tuple[list[int], list[int]]] = CALLS,
) -> Iterator[Arrays]:
    """Runs calls in both revisions; gives the errors of each.

    `source` has the weights of the graph, `like` those of the one in float32 that it is compared with.
    """
    config = model.config
    portable = model.program()
    rewrite(portable, "portable")
    wanted_of = Runner(write_graph(folder / "portable", portable, like or source))
    path = write_graph(folder / precision, rewritten(model, precision), source)
    checked(path, config, precision)
    found_of = Runner(rounding_model(path) if rounding else path)
    dtype: Any = ml_dtypes.bfloat16 if precision == "bf16" else np.float16
    for past, new in calls:
        temperatures = [0.5 + i for i in range(len(past))]
        host, device = device_inputs(config, past, new, 12, dtype, temperatures)
        if rounding:
            device |= {name: v.astype(np.float32) for name, v in device.items() if v.dtype == dtype}
        found = found_of(device)
        assert_ranked(config, device, found)
        yield errors(
            wanted_of(host), found, past, new, largest=precision in LARGEST or like is not None
        )


@pytest.fixture(params=[*PRECISIONS, "fp16 as on a GPU"])
def kind(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """A precision, and whether each node's result is rounded to 16 bits."""
    precision = request.param.split()[0]
    return precision, request.param not in ("fp16", "int8", "int4")


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_computes_what_float32_does(
    traced: Trace, name: str, kind: tuple[str, bool], tmp_path: Path
) -> None:
    precision, rounding = kind
    model = traced(MODELS[name][0])
    source = RandomWeights(model.weight_shapes)
    limits = (LARGEST | ROOT_MEAN_SQUARE)[precision]
    for found in compare(model, precision, tmp_path, rounding=rounding, source=source):
        assert_near(found, limits)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("name", ["opt", "opt-350m"])
def test_codes_are_read_as_they_are_stored(
    traced: Trace, name: str, precision: str, tmp_path: Path
) -> None:
    """What is left beside float32 with the weights that the codes stand for is float16's rounding."""
    model = traced(MODELS[name][0])
    source = RandomWeights(model.weight_shapes)
    like = dequantized(model.config, source, 8 if precision == "int8" else 4)
    changed = [k for k in source.shapes if not np.array_equal(source.values[k], like.values[k])]
    assert len(changed) == 8
    for found in compare(model, precision, tmp_path, rounding=False, source=source, like=like):
        assert_near(found, LARGEST["fp16"])


def toy_of(preset: str) -> ModelConfig:
    """Two layers of a preset with four of its heads."""
    width = 4 * BUILTIN_PRESETS[preset].config.head_dim
    return preset_shape(preset, 2, num_heads=4, hidden_dim=width, intermediate_dim=4 * width)


PUBLISHED = ["opt_125m_en", "opt_1.3b_en", "opt_2.7b_en", "opt_6.7b_en"]
SHAPES = {f"{name}, four heads": toy_of(name) for name in PUBLISHED}
WHOLE = {f"{name}, all heads": preset_shape(name) for name in PUBLISHED}
PRESET_CALLS = [([0, 0, 0], [5, 3, 0]), ([4], [5]), ([3, 0, 11], [1, 1, 1])]


QUICK = ("opt_125m_en, four heads", "opt_6.7b_en, four heads")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SHAPES | WHOLE]
)
def test_every_preset_computes_what_float32_does(traced: Trace, name: str, tmp_path: Path) -> None:
    model = traced((SHAPES | WHOLE)[name])
    source = RandomWeights(model.weight_shapes)
    for precision in ("fp16", "int4"):
        calls = compare(model, precision, tmp_path, rounding=False, source=source, calls=PRESET_CALLS)
        for found in calls:
            assert_near(found, (LARGEST | ROOT_MEAN_SQUARE)[precision])


def test_the_tolerances_are_within_what_an_export_allows() -> None:
    assert LARGEST["fp16"][0] <= TOLERANCES["fp16"]
    for precision, (logits, _, _) in ROOT_MEAN_SQUARE.items():
        assert logits < QUANTIZED_TOLERANCES[precision]

"""Exports for target cuda: what a bundle holds, what is refused, and what it says on a CPU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from exporter import OPTBackbone, OPTCausalLM, export_bundle
from exporter.errors import ExportError
from exporter.presets.folder import read_preset
from exporter.quantization.int4 import quantize_blocks
from exporter.quantization.int8 import quantize_row_blocks
from exporter.weights import CheckpointWeights, read_weight
from graphs.checks import check_graph
from graphs.contract import Phase, Revision
from graphs.manifest import read_manifest
from tests.exporter.conftest import TOY, randomize_keras
from tests.exporter.export_helpers import (
    FILES,
    bundle_tokens,
    fails,
    fused_operators,
    run,
    stored_tensors,
)

pytestmark = pytest.mark.usefixtures("quick_tracing")

PRECISIONS = ("fp16", "bf16", "int8", "int4")
TABLE = "embeddings/token_embedding/embeddings"
QKV = "transformer_layer_1/attention/qkv/kernel"
FUSED = {"GroupQueryAttention": 2, "SkipLayerNormalization": 5}
PRODUCTS = {"fp16": "FusedMatMul", "bf16": "FusedMatMul", "int8": "MatMulNBits", "int4": "MatMulNBits"}


@pytest.fixture(scope="module")
def bundles(quick_tracing, toy_preset, tmp_path_factory):
    """The toy preset in every precision, and what the command printed; not to be altered."""
    found = {}
    for name in PRECISIONS:
        folder = tmp_path_factory.mktemp("bundles") / name
        options = [] if name == "fp16" else ["--precision", name]  # fp16 is the default
        code, out, err = run("--preset", toy_preset, "--output", folder, "--target", "cuda", *options)
        assert code == 0, err
        found[name] = SimpleNamespace(folder=folder, out=out, err=err)
    return found


@pytest.fixture(params=PRECISIONS)
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def weights(toy_preset):
    """The checkpoint's weights in float32, by name."""
    source = CheckpointWeights(read_preset(toy_preset))
    found = {name: read_weight(source, name) for name in source.shapes}
    source.close()
    return found


# === What a bundle is ===


def test_the_manifest_and_the_files(bundles, precision):
    folder = bundles[precision].folder
    assert {path.name for path in folder.iterdir()} == FILES
    manifest = read_manifest(folder)
    assert (manifest.precision, manifest.target) == (precision, "cuda")
    assert manifest.contract_revision is Revision.DEVICE
    narrow = "bfloat16" if precision == "bf16" else "float16"
    assert manifest.cache_dtype == narrow
    assert {entry.name for entry in manifest.graphs.values()} == {"model.onnx"}
    assert set(manifest.graphs) == set(Phase)
    manifest.check_files(folder, weights_hash=True)
    path = folder / "model.onnx"
    check_graph(path, TOY, Phase.PREFILL, "weights.bin", narrow, Revision.DEVICE)
    assert fused_operators(path) == FUSED | {PRODUCTS[precision]: 8}


def test_what_the_command_prints(bundles, precision):
    out, err = bundles[precision].out, bundles[precision].err
    (rewrites,) = (line for line in out.splitlines() if line.startswith("Rewrites"))
    blocks = precision.startswith("int")
    narrow = "narrow_to_bf16" if precision == "bf16" else "narrow_to_fp16"
    assert rewrites == (
        "Rewrites     model: fuse_layer_norm 5, fuse_head 1, fuse_attention 2, keep_rows 2, "
        "take_positions 2, fuse_skip_norm 5, "
        + (f"block_layers_{precision} 8, " if blocks else "")
        + f"{narrow} {20 if blocks else 28}, rank_logits 1"
    )
    assert ("Calibrating with" in err) is ("Smoothing" in err) is (precision == "int4")
    (logits,) = (line for line in out.splitlines() if line.startswith("Logits"))
    if precision == "bf16":  # CPUs have no kernels for it
        assert logits == "Logits       not compared (--verify full does)"
        assert "Verifying graphs" in err
        assert read_manifest(bundles[precision].folder).probe is None
        return
    largest, mean = float(logits.split()[2]), float(logits.split("(")[1].split()[0])
    assert largest > 1e-5
    if blocks:
        assert mean < {"int8": 0.075, "int4": 0.3}[precision]  # half of what an export allows
    else:
        assert largest < 0.01
    assert read_manifest(bundles[precision].folder).probe is not None


# === What is stored ===


def stored(folder, name):
    """A tensor of the weights file as its graph reads it."""
    tensor = stored_tensors(folder / "model.onnx")[name]
    data = (folder / "weights.bin").read_bytes()[tensor.offset : tensor.offset + tensor.length]
    dtype = ml_dtypes.bfloat16 if tensor.dtype == "bfloat16" else tensor.dtype
    return np.frombuffer(data, dtype).reshape(tensor.shape)


@pytest.mark.parametrize(("name", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_floats_are_the_checkpoint_s_rounded_by_numpy(bundles, weights, name, dtype):
    """All of them, the matrices of layers transposed; a tied table is there once."""
    folder = bundles[name].folder
    found = stored_tensors(folder / "model.onnx")
    assert sorted(found) == sorted(f"{weight}.{name}" for weight in weights)
    for weight, value in weights.items():
        matrix = weight.startswith("transformer_layer_") and weight.endswith("/kernel")
        expected = (value.T if matrix else value).astype(dtype)
        assert found[f"{weight}.{name}"].dtype == np.dtype(dtype).name
        actual = stored(folder, f"{weight}.{name}")
        assert np.ascontiguousarray(expected).tobytes() == actual.tobytes(), weight
    assert len({tensor.offset for tensor in found.values()}) == len(found)


def test_int8_blocks_are_the_checkpoint_s(bundles, weights):
    folder = bundles["int8"].folder
    for weight, value in weights.items():
        if not (weight.startswith("transformer_layer_") and weight.endswith("/kernel")):
            expected = value.astype(np.float16)
            np.testing.assert_array_equal(stored(folder, f"{weight}.fp16"), expected)
            continue
        codes, scales = (stored(folder, f"{weight}.int8.fp16{part}") for part in ("", ".scales"))
        wanted, wanted_scales = quantize_row_blocks(np.ascontiguousarray(value.T), 32)
        np.testing.assert_array_equal(codes, wanted)
        np.testing.assert_array_equal(scales, wanted_scales.astype(np.float16))


def test_int4_blocks_are_in_float16(bundles):
    tensors = stored_tensors(bundles["int4"].folder / "model.onnx")
    assert tensors[f"{QKV}.int4.fp16"][1:] == (32 * 96 // 2, "uint8", (96, 1, 16))
    assert tensors[f"{QKV}.int4.fp16.scales"][1:] == (96 * 2, "float16", (96, 1))
    assert tensors[f"{QKV}.int4.fp16.zero_points"][1:] == (96, "uint8", (96, 1))
    assert tensors[f"{TABLE}.fp16"][1:] == (288 * 32 * 2, "float16", (288, 32))
    assert {tensor.dtype for tensor in tensors.values()} == {"uint8", "float16"}


def test_sizes(bundles, weights):
    size = {name: (b.folder / "weights.bin").stat().st_size for name, b in bundles.items()}
    parameters = sum(value.size for value in weights.values())
    assert size["fp16"] == size["bf16"]
    assert 2 * parameters <= size["fp16"] < 2 * parameters + 4096 * 12
    assert size["int4"] < size["int8"] < size["fp16"]


def test_an_export_again_is_the_same(bundles, precision, toy_preset, tmp_path):
    options = ["--precision", precision, "--target", "cuda", "--quiet", "--verify", "graph"]
    code, out, err = run("--preset", toy_preset, "--output", tmp_path / "b", *options)
    assert (code, out, err) == (0, "", "")
    expected = read_manifest(bundles[precision].folder).weights
    assert read_manifest(tmp_path / "b").weights == expected


# === Codes in blocks ===


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_onnx_runtime_multiplies_with_what_the_codes_stand_for(bits, dtype):
    """Its own MatMulNBits on the CPU: codes, scales, and with 4 bits zero points, as stored."""
    import onnx
    import onnxruntime

    generator = np.random.default_rng(1)
    rows = generator.standard_normal((24, 96)).astype(np.float32)
    x = generator.standard_normal((3, 96)).astype(dtype)
    if bits == 8:
        tensors = list(quantize_row_blocks(rows, 32))
        zeros = np.full((24, 3), 128)
        codes = tensors[0].astype(int)
    else:
        tensors = list(quantize_blocks(rows, 32))
        codes = np.stack([tensors[0] & 15, tensors[0] >> 4], axis=-1).reshape(24, 3, 32).astype(int)
        zeros = np.stack([tensors[2] & 15, tensors[2] >> 4], axis=-1).reshape(24, 4)[:, :3]
    tensors[1] = tensors[1].astype(dtype)
    matrix = (
        (codes - zeros[..., None].astype(int)) * tensors[1][..., None].astype(np.float32)
    ).reshape(24, 96)
    assert np.abs(matrix - rows).max() < (0.02 if bits == 8 else 0.5)
    names = ["codes", "scales", "zeros"][: len(tensors)]
    attributes = {"K": 96, "N": 24, "bits": bits, "block_size": 32}
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", *names], ["y"], domain="com.microsoft", **attributes
    )
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", element, [3, 96])],
        [onnx.helper.make_tensor_value_info("y", element, [3, 24])],
        [onnx.numpy_helper.from_array(t, name) for t, name in zip(tensors, names, strict=True)],
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": x})
    wanted = x.astype(np.float32) @ matrix.T
    tolerance = 1e-4 if dtype == np.float32 else 2e-2
    np.testing.assert_allclose(found.astype(np.float32), wanted, atol=tolerance)


# === What a bundle says ===


def test_fp16_says_on_the_cpu_what_the_float32_bundle_says(bundles, toy_bundle_of_ours):
    assert bundle_tokens(bundles["fp16"].folder) == bundle_tokens(toy_bundle_of_ours.folder)


def test_a_check_finds_the_bundles_sound(bundles, precision):
    code, out, err = run("--check", bundles[precision].folder)
    assert code == 0, out + err


def test_bf16_cannot_be_run_on_a_cpu(toy_preset, tmp_path):
    options = ["--target", "cuda", "--precision", "bf16", "--verify", "run"]
    line = fails("--preset", toy_preset, "--output", tmp_path / "b", *options)
    assert line == (
        "verify='run' runs the bundle on the CPU, which ONNX Runtime cannot do in bf16; use 'graph' or "
        "'none', or export fp16"
    )
    assert list(tmp_path.iterdir()) == []


# === What is refused ===


CHOICES = {
    "fp32 for cuda": (
        ["--precision", "fp32", "--target", "cuda"],
        "fp32 needs target 'portable' or 'cpu'; target 'cuda' has fp16, bf16, int8, int4; for fp32 on "
        "a GPU export target 'portable', which runs on any device",
    ),
    "fp16 for cpu": (
        ["--precision", "fp16"],
        "fp16 needs target 'cuda'; target 'cpu' has fp32, int8, int4",
    ),
    "bf16, portable": (
        ["--precision", "bf16", "--target", "portable"],
        "bf16 needs target 'cuda'; target 'portable' has fp32",
    ),
    "int8 prefill for cuda": (
        ["--precision", "int4", "--target", "cuda", "--prefill-precision", "int8"],
        "prefill_precision is a choice of int4 bundles for CPUs, not of int4 for target 'cuda'",
    ),
}


@pytest.mark.usefixtures("nothing_is_traced")
@pytest.mark.parametrize(("options", "message"), CHOICES.values(), ids=CHOICES)
def test_choices_that_do_not_fit_each_other(toy_preset, tmp_path, options, message):
    assert fails("--preset", toy_preset, "--output", tmp_path / "b", *options) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_is_traced")
@pytest.mark.parametrize("name", ["fp16", "bf16", "int8"])
def test_a_calibration_text_where_nothing_depends_on_it(toy_preset, tmp_path, name):
    expected = (
        f"^calibration is for int8 on CPUs and int4; {name} weights of target 'cuda' do not "
        "depend on a text$"
    )
    with pytest.raises(ValueError, match=expected):
        export_bundle(
            toy_preset, tmp_path / "b", target="cuda", precision=name, calibration="text " * 99
        )
    assert list(tmp_path.iterdir()) == []


def live_model(**sizes):
    backbone = OPTBackbone.from_sizes(replace(TOY, num_layers=1, **sizes), dropout=0.0)
    randomize_keras(backbone, seed=7)
    return OPTCausalLM(backbone)


@pytest.mark.usefixtures("nothing_is_traced")
def test_heads_that_the_attention_does_not_take(tmp_path, precision):
    message = (
        "^target 'cuda' needs attention heads of a multiple of 8 numbers, and this model's have 4; "
        "export target 'portable', fp32 for any device$"
    )
    with pytest.raises(ValueError, match=message):
        export_bundle(live_model(hidden_dim=16), tmp_path / "b", target="cuda", precision=precision)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_is_traced")
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_widths_that_no_block_divides(tmp_path, name):
    message = (
        "^codes in blocks need widths that 16 divides, and this model has widths of 32, 40, 32; export "
        "it for target cpu as int8, or as floats$"
    )
    with pytest.raises(ValueError, match=message):
        export_bundle(live_model(intermediate_dim=40), tmp_path / "b", target="cuda", precision=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_floats_take_widths_that_no_block_divides(tmp_path, name):
    summary = export_bundle(
        live_model(intermediate_dim=40), tmp_path / "b", target="cuda", precision=name
    )
    assert (summary.comparison is None) is (name == "bf16")


# === Numbers that are too large ===

LARGE = {
    "transformer_layer_0/intermediate/bias": 1e5,
    "transformer_layer_0/output/kernel": -1e5,
}


@pytest.mark.parametrize("weight", LARGE)
def test_numbers_that_float16_does_not_hold(tmp_path, weight):
    model = live_model()
    (variable,) = (v for v in model.backbone.weights if v.path == weight)
    values = np.array(variable)
    values.flat[3] = LARGE[weight]
    variable.assign(values)
    message = (
        f"^{weight} has the number 100000, more than float16 holds; export the model with --precision "
        "bf16, which holds what fp32 does, or for another target$"
    )
    with pytest.raises(ExportError, match=message):
        export_bundle(model, tmp_path / "fp16", target="cuda", verify="none")
    assert list(tmp_path.iterdir()) == []
    export_bundle(model, tmp_path / "bf16", target="cuda", precision="bf16")
    narrow = stored(tmp_path / "bf16", f"{weight}.bf16").astype(np.float32)
    assert narrow.ravel()[np.abs(narrow).argmax()] == pytest.approx(LARGE[weight], rel=2**-8)


@pytest.mark.parametrize(
    ("name", "number", "told"),
    [
        ("int8", 1e7, "output"),
        ("int4", 1e14, "intermediate"),  # smoothing has shared it between the two
    ],
)
def test_scales_that_float16_does_not_hold(tmp_path, name, number, told):
    model = live_model()
    (kernel,) = (v for v in model.backbone.weights if v.path == "transformer_layer_0/output/kernel")
    kernel.assign(np.full(kernel.shape, number, np.float32))
    message = f"^transformer_layer_0/{told}/kernel has the number .*, more than float16 holds"
    with pytest.raises(ExportError, match=message):
        export_bundle(model, tmp_path / "b", target="cuda", precision=name, verify="none")
    assert list(tmp_path.iterdir()) == []

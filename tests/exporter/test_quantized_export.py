"""Exports to int8 and int4 from end to end: what a bundle holds and says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from exporter import OPTBackbone, OPTCausalLM, export_bundle
from exporter.binding import PAGE, WORD
from graphs.contract import Phase
from graphs.manifest import read_manifest
from runtime import session
from runtime.bundle import load_bundle
from runtime.session import SessionDecoder
from tests.exporter.conftest import TOY, randomize_keras
from tests.exporter.export_helpers import (
    FILES,
    FILES_OF_TWO_GRAPHS,
    LENGTH,
    PROMPTS,
    bundle_tokens,
    fused_operators,
    load,
    run,
    stored_tensors,
)

pytestmark = pytest.mark.usefixtures("quick_tracing")

OPTIONS = {
    "int8": ["--precision", "int8"],
    "int4": ["--precision", "int4"],
    "mixed": ["--precision", "int4", "--prefill-precision", "int8"],
}
GRAPHS = {"int8": ["model"], "int4": ["model"], "mixed": ["prefill", "decode"]}
FUSED = {"GroupQueryAttention": 2}
INT8_LAYERS, INT4_LAYERS = {"MatMulIntegerToFloat": 8}, {"MatMulNBits": 8}
INT4_TABLES = {"GatherBlockQuantized": 1, "MatMulNBits": 1}
OPERATORS = {
    ("int8", "model"): FUSED | INT8_LAYERS | {"QGemm": 1},
    ("int4", "model"): FUSED | INT4_TABLES | {"MatMulNBits": 9},
    ("mixed", "prefill"): FUSED | INT8_LAYERS | INT4_TABLES,
    ("mixed", "decode"): FUSED | INT4_TABLES | {"MatMulNBits": 9},
}
# In the mean, of the logits' standard deviation: far below what an export lets pass.
LARGEST_MEAN_DIFFERENCE = {"int8": 0.05, "int4": 0.3, "mixed": 0.3}
TABLE = "embeddings/token_embedding/embeddings"
QKV = "transformer_layer_1/attention/qkv/kernel"


@pytest.fixture(scope="module")
def bundles(quick_tracing, toy_preset, tmp_path_factory):
    """The toy preset in every precision, and what the command printed; not to be altered."""
    found = {}
    for name, options in OPTIONS.items():
        folder = tmp_path_factory.mktemp("bundles") / name
        code, out, err = run("--preset", toy_preset, "--output", folder, *options)
        assert code == 0, err
        found[name] = SimpleNamespace(folder=folder, out=out, err=err)
    return found


@pytest.fixture(params=OPTIONS)
def kind(request):
    return request.param


# === What a bundle is ===


def test_the_manifest_and_the_files(bundles, kind, toy_config):
    folder = bundles[kind].folder
    manifest = read_manifest(folder)
    assert manifest.model == toy_config
    assert (manifest.precision, manifest.target) == ("int8" if kind == "int8" else "int4", "cpu")
    assert manifest.cache_dtype == "float32"
    files = {phase: entry.name for phase, entry in manifest.graphs.items()}
    if kind == "mixed":
        assert files == {Phase.PREFILL: "prefill.onnx", Phase.DECODE: "decode.onnx"}
    else:
        assert files == dict.fromkeys(Phase, "model.onnx")
    expected = FILES_OF_TWO_GRAPHS if kind == "mixed" else FILES
    assert {path.name for path in folder.iterdir()} == expected
    manifest.check_files(folder, weights_hash=True)


def test_the_graphs(bundles, kind):
    for graph in GRAPHS[kind]:
        assert fused_operators(bundles[kind].folder / f"{graph}.onnx") == OPERATORS[kind, graph]


def test_every_tensor_lies_at_a_place_of_its_own(bundles, kind):
    folder = bundles[kind].folder
    tensors = {}
    for graph in GRAPHS[kind]:
        found = stored_tensors(folder / f"{graph}.onnx")
        assert all(tensors.get(name, tensor) == tensor for name, tensor in found.items())
        tensors |= found
    ends = {tensor.offset: tensor.offset + tensor.length for tensor in tensors.values()}
    end = 0
    for offset in sorted(ends):
        length = ends[offset] - offset
        alignment = PAGE if length >= PAGE else WORD
        assert offset == -(-end // alignment) * alignment  # nothing between them, nothing twice
        end = ends[offset]
    assert end == (folder / "weights.bin").stat().st_size


def test_what_is_stored_as_what(bundles):
    int8 = stored_tensors(bundles["int8"].folder / "model.onnx")
    int4 = stored_tensors(bundles["int4"].folder / "model.onnx")
    assert int8[f"{QKV}.int8"][1:] == (32 * 96, "int8", (32, 96))
    assert int8[f"{QKV}.int8.scales"][2:] == ("float32", (96,))
    assert int8[f"{QKV}.input_scale"][2:] == ("float32", ())
    assert int8[f"{QKV}.input_zero_point"][2:] == ("uint8", ())
    assert int4[f"{QKV}.int4"][1:] == (32 * 96 // 2, "uint8", (96, 1, 16))
    assert int4[f"{QKV}.int4.zero_points"][1:] == (96, "uint8", (96, 1))
    for tensors in (int8, int4):
        positions = tensors["embeddings/position_embedding/embeddings.fp16"]
        assert positions[1:] == (64 * 32 * 2, "float16", (64, 32))
        assert tensors["transformer_layer_1/output/bias"][2:] == ("float32", (32,))
        assert not {QKV, TABLE, "embeddings/position_embedding/embeddings"} & set(tensors)


def test_one_table_serves_the_lookup_and_the_head(bundles):
    int8 = stored_tensors(bundles["int8"].folder / "model.onnx")
    assert int8[f"{TABLE}.int8.rows"] == int8[f"{TABLE}.int8"]
    assert int8[f"{TABLE}.int8.rows.scales"][:2] == int8[f"{TABLE}.int8.scales"][:2]
    for kind, graph in (("int4", "model"), ("mixed", "prefill"), ("mixed", "decode")):
        int4 = stored_tensors(bundles[kind].folder / f"{graph}.onnx")
        assert int4[f"{TABLE}.int4.rows"][:2] == int4[f"{TABLE}.int4"][:2]
        assert int4[f"{TABLE}.int4.rows"].shape == (288, 16)


def test_sizes(bundles, toy_bundle_of_ours):
    """A bundle whose prefill is int8 has the layers twice and all else once."""
    size = {name: (b.folder / "weights.bin").stat().st_size for name, b in bundles.items()}
    fp32 = (toy_bundle_of_ours.folder / "weights.bin").stat().st_size
    assert size["int4"] < size["int8"] < 0.5 * fp32
    layers = 2 * (4 * 32 * 32 + 2 * 32 * 64)  # bytes of the matrices in int8
    assert size["int4"] + layers < size["mixed"] < size["int8"] + layers


def test_the_two_graphs_of_a_mixed_bundle_share_what_is_not_a_matrix(bundles):
    folder = bundles["mixed"].folder
    prefill, decode = (stored_tensors(folder / f"{phase}.onnx") for phase in Phase)
    shared = set(prefill) & set(decode)
    assert {name for name in shared if "layer_1" in name and "kernel" in name} == set()
    assert {f"{TABLE}.int4", f"{TABLE}.int4.rows", "layer_norm/gamma"} <= shared
    assert all("kernel" in name for name in set(prefill) ^ set(decode))


def test_what_the_command_prints(bundles, kind):
    out, err = bundles[kind].out, bundles[kind].err
    fused = "fuse_layer_norm 5, fuse_head 1, fuse_attention 2"
    rewrites = [line for line in out.splitlines() if line.startswith("Rewrites")]
    assert len(rewrites) == len(GRAPHS[kind])
    for line, graph in zip(rewrites, GRAPHS[kind], strict=True):
        layers = "int8" if kind == "int8" or graph == "prefill" else "int4"
        tables = "int8" if kind == "int8" else "int4"
        assert line == (
            f"Rewrites     {graph}: {fused}, keep_rows 2, halve_positions 1, "
            f"quantize_layers_{layers} 8, quantize_tables_{tables} 2"
        )
    phases = [
        "Tracing the",
        "Calibrating with",
        "Smoothing",
        "Writing weights",
        "Comparing logits with Keras",
    ]
    places = [err.index(phase) for phase in phases]
    assert places == sorted(places)
    (line,) = (line for line in out.splitlines() if line.startswith("Logits"))
    mean = float(line.split("(")[1].split()[0])
    assert 1e-3 < mean < LARGEST_MEAN_DIFFERENCE[kind]


def test_an_export_again_is_the_same(bundles, kind, toy_preset, tmp_path):
    code, _, err = run("--preset", toy_preset, "--output", tmp_path / "b", *OPTIONS[kind], "--quiet")
    assert (code, err) == (0, "")
    expected = read_manifest(bundles[kind].folder).weights
    assert read_manifest(tmp_path / "b").weights == expected


# === What a bundle says ===


def open_decoder(folder, **options):
    options = {"threads": 1, "packed_weights": False, **options}
    return SessionDecoder(load_bundle(folder), **options)


def steps(decoder, rows, splits):
    """Logits [rows, splits, vocabulary] after every piece of each row."""
    rows = [np.asarray(row) for row in rows]
    cache = decoder.new_cache(len(rows), max(len(row) for row in rows) + 1)
    done, found = np.zeros(len(rows), int), []
    for lengths in splits:
        ids = np.zeros((len(rows), max(lengths)), np.int64)
        for i, n in enumerate(lengths):
            ids[i, :n] = rows[i][done[i] : done[i] + n]
        found.append(decoder.append(cache, ids, np.array(lengths, np.int32)).logits.copy())
        done += lengths
    return np.stack(found, axis=1)


def test_a_row_does_not_depend_on_the_rows_beside_it(bundles, kind):
    """Bit by bit: other rows have other lengths and greater activations."""
    decoder = open_decoder(bundles[kind].folder)
    generator = np.random.default_rng(6)
    rows = [generator.integers(4, 288, length) for length in (12, 5, 9)]
    splits = [(10, 3, 7), (1, 1, 1), (1, 1, 1)]
    together = steps(decoder, rows, splits)
    for i, row in enumerate(rows):
        alone = steps(decoder, [row], [(split[i],) for split in splits])
        np.testing.assert_array_equal(alone[0], together[i])


def test_rows_of_wide_int4_models_run_alone(tmp_path, monkeypatch):
    """In blocks of more than 32, the int4 kernel takes two rows at once and rounds one differently."""
    model = build(replace(TOY, hidden_dim=256, intermediate_dim=512))
    export_bundle(model, tmp_path / "b", precision="int4", verify="none")
    rows, splits = np.random.default_rng(8).integers(4, 288, (3, 9)), [(7, 6, 7), (1, 1, 1)]
    runs = []
    run = SessionDecoder._run
    monkeypatch.setattr(session, "CHUNK_TOKENS", 192)
    monkeypatch.setattr(SessionDecoder, "_run", lambda *args: runs.append(args[3]) or run(*args))
    found = {}
    for independent in (True, False):
        decoder = open_decoder(tmp_path / "b", independent_rows=independent)
        found[independent] = steps(decoder, rows, splits)
    assert runs == [7, 6, 7, 1, 1, 1, 21, 3]
    for i, row in enumerate(rows):
        alone = steps(decoder, [row], [(split[i],) for split in splits])
        np.testing.assert_array_equal(alone[0], found[True][i])
    np.testing.assert_allclose(found[False], found[True], atol=0.1 * found[True].std())


def test_a_prompt_in_pieces_is_the_prompt(bundles, kind):
    decoder = open_decoder(bundles[kind].folder)
    row = np.random.default_rng(7).integers(4, 288, 14)
    whole = steps(decoder, [row], [(14,)])[:, -1]
    pieces = steps(decoder, [row], [(5,), (7,), (2,)])[:, -1]
    # Sums in another order may round an activation to the code beside its own, which counts in a toy.
    assert np.abs(pieces - whole).max() < 0.2 * whole.std()


@pytest.mark.parametrize("chunk", [4, 192])
def test_named_logits_are_those_of_shorter_prompts(bundles, kind, chunk, monkeypatch):
    """Of all positions of rows in several runs, and in one; of the last ones to the bit."""
    monkeypatch.setattr(session, "CHUNK_TOKENS", chunk)
    decoder = open_decoder(bundles[kind].folder)
    rows = np.random.default_rng(9).integers(4, 288, (2, 11))
    lengths = np.full(2, 11, np.int32)
    outputs = np.random.default_rng(10).permutation(22)
    found = decoder.append(decoder.new_cache(2, 12), rows, lengths, outputs=outputs).logits
    ordered = np.empty_like(found)
    ordered[outputs] = found
    # A single token, which ends some chunks too, is the decode graph's: mixed, that has other weights.
    ends = [n for n in range(1, 12) if kind != "mixed" or n % chunk != 1]
    wanted = np.concatenate([steps(decoder, rows, [(n, n)]) for n in ends], axis=1)
    differences = np.abs(ordered.reshape(2, 11, -1)[:, [n - 1 for n in ends]] - wanted)
    assert differences.max() < 0.2 * wanted.std()
    assert differences.mean() < 0.02 * wanted.std()
    last = steps(decoder, rows, [(11, 11)])[:, 0]
    found = decoder.append(decoder.new_cache(2, 12), rows, lengths, outputs=np.array([21, 10]))
    np.testing.assert_array_equal(found.logits, last[::-1])


def test_batches_generate_what_single_prompts_do(bundles, kind):
    folder = bundles[kind].folder
    found = bundle_tokens(folder)
    generator = load(folder)
    for prompt, expected in zip(PROMPTS, found, strict=True):
        (alone,) = generator.generate_results([prompt], LENGTH, stop_token_ids=None)
        assert [*alone.prompt_token_ids, *alone.token_ids] == expected


# === Other models, from live ones ===

MODELS = {
    "opt-350m": replace(TOY, embedding_dim=16, norm_first=False, final_norm=False),
    "galactica": replace(TOY, activation="gelu", use_bias=False, norm_affine=False),
    "galactica with biases": replace(TOY, activation="gelu"),
    "untied": replace(TOY, tied_head=False, final_norm=False),
    "heads of 4": replace(TOY, num_heads=8),
    "other": replace(
        TOY, activation="silu", norm_first=False, embedding_dim=48, use_bias=False, tied_head=False
    ),
}
# The switches of opt-350m and of galactica.
MODELS["both"] = replace(MODELS["opt-350m"], activation="gelu", use_bias=False, norm_affine=False)


def build(config, layers=1):
    backbone = OPTBackbone.from_sizes(replace(config, num_layers=layers), dropout=0.0)
    randomize_keras(backbone, seed=5)
    return OPTCausalLM(backbone)


QUICK = ("both", "other")  # which have each switch


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MODELS]
)
def test_other_models(name, tmp_path):
    """Without a tokenizer: random tokens calibrate."""
    model = build(MODELS[name])
    for kind, options in (
        ("int8", {"precision": "int8"}),
        ("mixed", {"precision": "int4", "prefill_precision": "int8"}),
    ):
        summary = export_bundle(model, tmp_path / kind, verify="full", **options)
        assert 1e-4 < summary.comparison.mean_difference < LARGEST_MEAN_DIFFERENCE[kind]
        assert list(summary.rewrites) == GRAPHS[kind]
        stored = set()
        for graph in GRAPHS[kind]:
            stored |= set(stored_tensors(tmp_path / kind / f"{graph}.onnx"))
        projections = {name for name in stored if "project" in name}
        narrow = MODELS[name].embedding_dim is not None
        expected = {"embeddings/project_in/kernel", "project_out/kernel"} if narrow else set()
        assert projections == expected  # in float32, under their own names


def test_a_live_model_and_its_own_tokenizer(build_model, tmp_path):
    model = build_model(seed=30)
    summary = export_bundle(model, tmp_path / "b", precision="int8")
    assert 1e-4 < summary.comparison.mean_difference < LARGEST_MEAN_DIFFERENCE["int8"]
    assert read_manifest(tmp_path / "b").source == {"preset": "toy", "format": "live"}
    expected = model.generate(PROMPTS, max_length=LENGTH)
    assert len(load(tmp_path / "b").generate(PROMPTS, max_length=LENGTH)) == len(expected)

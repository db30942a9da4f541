"""Exports from end to end: what a bundle and the command say and do."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporter import OPTCausalLM, export_bundle
from exporter.binding import PAGE, WORD
from exporter.cli import main
from exporter.errors import ExportError
from exporter.presets import adapted
from exporter.presets.folder import read_preset
from exporter.progress import Progress
from exporter.weights import CheckpointWeights, read_weight
from graphs.contract import Phase, Revision
from graphs.manifest import read_manifest
from runtime import Generator, samplers
from runtime.samplers import Sampler
from tests.exporter.export_helpers import (
    FILES,
    LENGTH,
    PROMPTS,
    TOKENIZER_FILES,
    bundle_tokens,
    fails,
    greedy_of_transformers,
    listing,
    load,
    run,
    stored_tensors,
)

pytestmark = pytest.mark.usefixtures("quick_tracing")


# === Against the reference implementations ===


@pytest.fixture(scope="module")
def prompt_ids(toy_tokenizer):
    """The tokens of every prompt."""
    return [[2, *toy_tokenizer.encode(prompt)] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def keras_hub_tokens(keras_hub, hub_model, prompt_ids):
    """What keras-hub's own `generate` makes of the prompts."""
    model = keras_hub.models.OPTCausalLM(backbone=hub_model.backbone, preprocessor=None)
    model.compile(sampler="greedy", run_eagerly=True)
    token_ids = np.ones((len(PROMPTS), LENGTH), "int32")
    mask = np.zeros((len(PROMPTS), LENGTH), bool)
    for i, prompt in enumerate(prompt_ids):
        token_ids[i, : len(prompt)], mask[i, : len(prompt)] = prompt, True
    found = model.generate({"token_ids": token_ids, "padding_mask": mask}, stop_token_ids=None)
    return np.asarray(found["token_ids"]).tolist()


@pytest.fixture(scope="module")
def transformers_tokens(hf_model, prompt_ids):
    """What transformers' own `generate` makes of the prompts."""
    return greedy_of_transformers(hf_model, prompt_ids, LENGTH)


@pytest.mark.reference
@pytest.mark.parametrize("preset", ["hub_preset", "hub_sharded_preset"])
def test_a_keras_hub_preset_says_what_keras_hub_says(preset, request, tmp_path, keras_hub_tokens):
    code, _, err = run("--preset", request.getfixturevalue(preset), "--output", tmp_path / "b")
    assert code == 0, err
    found = bundle_tokens(tmp_path / "b")
    assert found == keras_hub_tokens
    assert len({tuple(row[-10:]) for row in found}) > 1


@pytest.mark.reference
@pytest.mark.parametrize("preset", ["hf_folder", "hf_sharded_folder"])
def test_a_transformers_folder_says_what_transformers_says(
    preset, request, tmp_path, transformers_tokens
):
    code, _, err = run("--preset", request.getfixturevalue(preset), "--output", tmp_path / "b")
    assert code == 0, err
    assert bundle_tokens(tmp_path / "b") == transformers_tokens
    manifest = read_manifest(tmp_path / "b")
    assert manifest.generation.max_length == 64
    assert manifest.source["format"] == "huggingface"


# === What a bundle is ===


def test_the_bundle_says_what_the_model_says(toy_bundle_of_ours, toy_model, greedy, prompt_ids):
    found = bundle_tokens(toy_bundle_of_ours.folder)
    assert found == greedy(toy_model, prompt_ids, LENGTH)
    # What a row becomes does not depend on the rows beside it.
    generator = load(toy_bundle_of_ours.folder)
    for prompt, expected in zip(PROMPTS, found, strict=True):
        (alone,) = generator.generate_results([prompt], LENGTH, stop_token_ids=None)
        assert [*alone.prompt_token_ids, *alone.token_ids] == expected


def test_the_manifest(toy_bundle_of_ours, toy_config):
    folder = toy_bundle_of_ours.folder
    assert {path.name for path in folder.iterdir()} == FILES
    manifest = read_manifest(folder)
    assert manifest.contract_revision == Revision.HOST
    assert manifest.model == toy_config
    assert manifest.precision == "fp32"
    assert manifest.target == "cpu"
    assert manifest.cache_dtype == "float32"
    assert set(manifest.graphs) == set(Phase)
    assert {entry.name for entry in manifest.graphs.values()} == {"model.onnx"}
    assert manifest.weights.name == "weights.bin"
    assert [entry.name for entry in manifest.tokenizer] == ["vocabulary.json", "merges.txt"]
    assert manifest.generation.max_length == 32
    assert manifest.generation.sampler == samplers.serialize(samplers.TopKSampler(k=5))
    assert manifest.source == {"preset": "toy", "format": "keras"}
    assert {"keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime"} <= set(manifest.versions)
    manifest.check_files(folder, weights_hash=True)


def test_the_graph_points_at_the_checkpoint_s_weights(toy_bundle_of_ours, toy_preset):
    data = (toy_bundle_of_ours.folder / "weights.bin").read_bytes()
    places = stored_tensors(toy_bundle_of_ours.folder / "model.onnx")
    table = "embeddings/token_embedding/embeddings"
    assert places.pop(f"{table}.rows") == places[table]  # one table for the lookup and the head
    with contextlib.closing(CheckpointWeights(read_preset(toy_preset))) as source:
        assert set(places) == set(source.shapes)
        for name, shape in source.shapes.items():
            offset, length, dtype, stored_shape = places[name]
            assert offset % (PAGE if length >= PAGE else WORD) == 0
            assert (dtype, stored_shape) == ("float32", shape)
            stored = np.frombuffer(data[offset : offset + length], "<f4").reshape(shape)
            np.testing.assert_array_equal(stored, read_weight(source, name), err_msg=name)
    assert len(data) == max(tensor.offset + tensor.length for tensor in places.values())


def test_graphs_hold_no_path_of_this_machine(toy_bundle_of_ours, toy_preset):
    for name in FILES:
        data = (toy_bundle_of_ours.folder / name).read_bytes()
        assert str(toy_preset.parent).encode() not in data
        assert str(toy_bundle_of_ours.folder.parent).encode() not in data


@pytest.mark.reference
def test_shards_make_the_same_weights_file(hub_preset, hub_sharded_preset, tmp_path):
    hashes = set()
    for name, preset in (("one", hub_preset), ("many", hub_sharded_preset)):
        summary = export_bundle(preset, tmp_path / name, verify="none")
        hashes.add(read_manifest(summary.bundle).weights.sha256)
    assert len(hashes) == 1


def test_a_bundle_without_a_tokenizer(plain_hf_folder, tmp_path, greedy):
    code, _, err = run("--preset", plain_hf_folder, "--output", tmp_path / "b")
    assert code == 0, err
    manifest = read_manifest(tmp_path / "b")
    assert manifest.tokenizer == ()
    assert {p.name for p in (tmp_path / "b").iterdir()} == FILES - TOKENIZER_FILES
    generator = load(tmp_path / "b")
    assert generator.tokenizer is None
    tokens = {"token_ids": np.array([[2, 5, 6] + [1] * 9]), "padding_mask": np.arange(12)[None] < 3}
    found = generator.generate(tokens, stop_token_ids=None)["token_ids"][0].tolist()
    model = OPTCausalLM.from_preset(str(plain_hf_folder))
    assert [found] == greedy(model, [[2, 5, 6]], 12)
    with pytest.raises(ValueError, match="text needs a tokenizer"):
        generator.generate("import")


# === Live models ===


def test_a_live_model(build_model, tmp_path, greedy, prompt_ids):
    model = build_model(seed=30, dropout=0.1)
    model.compile(sampler=samplers.TopKSampler(k=3, seed=7, temperature=0.5))
    summary = export_bundle(model, tmp_path / "b")
    assert summary.comparison.difference < 1e-4
    manifest = read_manifest(tmp_path / "b")
    assert manifest.source == {"preset": "toy", "format": "live"}
    assert manifest.generation.max_length == 32
    sampler = Generator.from_bundle(tmp_path / "b").sampler
    assert samplers.serialize(sampler) == samplers.serialize(model.sampler)
    assert bundle_tokens(tmp_path / "b") == greedy(model, prompt_ids, LENGTH)
    texts = model.generate(PROMPTS, max_length=LENGTH)  # top-k with a seed: one loop, one outcome
    assert Generator.from_bundle(tmp_path / "b").generate(PROMPTS, max_length=LENGTH) == texts


def test_a_live_model_after_training_is_exported_as_it_is_now(
    build_model, tmp_path, greedy, prompt_ids
):
    import keras

    model = build_model(seed=31)
    before = greedy(model, prompt_ids, LENGTH)
    model.compile(optimizer=keras.optimizers.Adam(0.05), run_eagerly=True)
    model.fit([" the quick brown fox"] * 2, batch_size=2, verbose=0)
    export_bundle(model, tmp_path / "b", verify="graph")
    found = bundle_tokens(tmp_path / "b")
    assert found == greedy(model, prompt_ids, LENGTH) != before


def test_a_live_model_without_a_preprocessor(build_model, tmp_path):
    export_bundle(build_model(preprocessor=False), tmp_path / "b", verify="graph")
    manifest = read_manifest(tmp_path / "b")
    assert manifest.tokenizer == ()
    assert manifest.generation.max_length == 64


def test_a_live_model_in_bfloat16_is_exported_in_float32(build_model, tmp_path):
    model = build_model(seed=32, dtype="bfloat16")
    summary = export_bundle(model, tmp_path / "b")
    assert summary.comparison.difference < 1e-4
    weights = onnx.load(tmp_path / "b" / "model.onnx").graph.initializer
    table = next(t for t in weights if t.name == "embeddings/token_embedding/embeddings")
    expected = np.asarray(model.backbone.token_embedding.embeddings.value).astype("float32")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(table), expected)


def test_a_sampler_that_a_bundle_cannot_name_is_refused(build_model, tmp_path):
    """A bundle is data: it cannot carry a caller's own class, and must not come out unusable."""

    class LastToken(Sampler):
        def get_next_token(self, probabilities, generators):
            return np.full(len(probabilities), probabilities.shape[-1] - 1)

    model = build_model()
    model.compile(sampler=LastToken())
    with pytest.raises((ExportError, ValueError), match="LastToken"):
        export_bundle(model, tmp_path / "b", verify="graph")
    assert list(tmp_path.iterdir()) == []


# === The command ===


def test_the_summary(toy_bundle_of_ours):
    out, folder = toy_bundle_of_ours.out, toy_bundle_of_ours.folder
    lines = dict(line.split(maxsplit=1) for line in out.replace("Peak memory", "Memory").splitlines())
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    assert lines["Bundle"] == str(folder)
    assert lines["Size"] == f"{size:.1f} MB"
    assert lines["Time"].endswith(" s")
    assert "MB" in lines["Memory"]
    assert "MB in the process that tried the bundle" in lines["Memory"]
    listed = "fuse_layer_norm 5, fuse_head 1, fuse_attention 2, fuse_bias 8"
    assert f"Rewrites     model: {listed}, separate_lookup 1\n" in out
    assert lines["Logits"].startswith("within ")
    assert " of a standard deviation of Keras's (" in lines["Logits"]
    assert lines["Logits"].endswith(" in the mean)")
    numbers = [float(found) for found in re.findall(r"[\d.]+e-\d+", lines["Logits"])]
    assert 0 < numbers[1] < numbers[0] < 1e-4


def test_the_progress(toy_bundle_of_ours, toy_preset):
    phases = [
        f"Reading preset {toy_preset}",
        "Tracing the model graph (2 layers)",
        "Writing weights",
        "Writing graphs",
        "Verifying graphs",
        "Comparing logits with Keras",
        "Finishing",
    ]
    places = [toy_bundle_of_ours.err.index(phase) for phase in phases]
    assert places == sorted(places)
    assert "100%" in toy_bundle_of_ours.err


def test_progress_counts_every_byte(toy_preset, tmp_path):
    counted = []

    class Counting(Progress):
        def phase(self, name, total_bytes=None):
            counted.append([name, total_bytes, 0])

        def advance(self, size):
            counted[-1][2] += size

    export_bundle(toy_preset, tmp_path / "b", verify="none", progress=Counting())
    ((_, total, written),) = [entry for entry in counted if entry[1] is not None]
    assert total == written == (tmp_path / "b" / "weights.bin").stat().st_size


def test_quiet_prints_nothing(toy_preset, tmp_path):
    code, out, err = run("--preset", toy_preset, "--output", tmp_path / "b", "--quiet")
    assert (code, out, err) == (0, "", "")


def test_the_default_output_is_the_preset_s_name_here(toy_preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("--preset", toy_preset, "--verify", "none")
    assert code == 0
    assert out.startswith("Bundle       toy\n")
    assert {p.name for p in (tmp_path / "toy").iterdir()} == FILES


@pytest.mark.parametrize(
    "handle",
    [
        "kaggle://me/opt/keras/mine",
        "kaggle://me/opt/keras/mine/4",
        "hf://me/mine",
        "hf://me/mine@refs/pr/4",
    ],
)
def test_the_default_output_of_a_handle_is_the_model_s_name(toy_preset, tmp_path, monkeypatch, handle):
    """Wherever the hub's client puts the files; that it does is tested with the handles."""
    resolved = []

    def resolve(name, weights):
        assert weights
        resolved.append(str(name))
        return toy_preset

    monkeypatch.setattr(adapted, "resolve_preset", resolve)
    monkeypatch.chdir(tmp_path)
    summary = export_bundle(handle, verify="none")
    assert resolved == [handle]
    assert summary.bundle.name == "mine"
    assert "mine" in read_manifest(tmp_path / "mine").source["preset"]


def test_a_preset_in_this_folder_is_not_written_over(toy_preset, tmp_path, monkeypatch):
    shutil.copytree(toy_preset, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    for options in ([], ["--force"]):
        line = fails("--preset", "mine", *options)
        assert line == "mine exists and is not a bundle; choose another --output"
    assert listing(tmp_path) == before


def test_missing_parents_are_made(toy_preset, tmp_path):
    code, _, err = run(
        "--preset", toy_preset, "--output", tmp_path / "a" / "b" / "c", "--verify", "none"
    )
    assert code == 0, err
    assert {p.name for p in (tmp_path / "a" / "b").iterdir()} == {"c"}


def test_the_summary_of_the_function(toy_preset, tmp_path):
    summary = export_bundle(toy_preset, tmp_path / "b")
    assert summary.bundle == tmp_path / "b"
    assert summary.size_bytes == read_manifest(tmp_path / "b").total_bytes
    assert summary.seconds > 0
    assert summary.peak_memory_bytes > 50e6
    counts = {
        "fuse_layer_norm": 5,
        "fuse_head": 1,
        "fuse_attention": 2,
        "fuse_bias": 8,
        "separate_lookup": 1,
    }
    assert summary.rewrites == {"model": counts}
    assert 0 < summary.comparison.mean_difference < summary.comparison.difference < 1e-4
    assert summary.comparison.peak_memory_bytes > 10e6


@pytest.mark.parametrize(
    "options",
    [
        ["--precision", "int3"],
        ["--target", "tpu"],
        ["--prefill-precision", "int4"],
        ["--verify", "some"],
        ["--preset"],
    ],
)
def test_bad_options(options):
    with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as raised:
        main(["--preset", "x", *options])
    assert raised.value.code == 2
    assert options[0] in err.getvalue()


@pytest.mark.parametrize("name", ["precision", "target", "verify"])
def test_bad_options_of_the_function(toy_preset, tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*; got 'other'"):
        export_bundle(toy_preset, tmp_path / "b", **{name: "other"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are any bytes on Linux")
def test_folders_whose_names_are_no_text(toy_preset, tmp_path):
    """Of the preset, of the bundle, and of a pack's owner."""
    name = os.fsdecode(b"caf\xe9 \xff")
    preset = Path(shutil.copytree(toy_preset, tmp_path / name))
    bundle = tmp_path / "bundles" / name
    code, _, err = run("--preset", preset, "--output", bundle, "--verify", "full")
    assert code == 0, err
    assert read_manifest(bundle).source["preset"] == "caf\\xe9 \\xff"
    assert run("--check", bundle)[0] == 0
    assert bundle_tokens(bundle) == bundle_tokens(shutil.copytree(bundle, tmp_path / "plain"))

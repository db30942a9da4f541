"""Exports for target cpu: what the bundle holds, and that it says what the portable one says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from exporter import OPTBackbone, OPTCausalLM, export, export_bundle
from exporter.errors import ExportError
from graphs.checks import check_graph
from graphs.contract import Phase
from graphs.manifest import FileEntry, read_manifest
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

FUSED = {"GroupQueryAttention": 2}


@pytest.fixture(scope="module")
def portable(quick_tracing, toy_preset, tmp_path_factory):
    """The toy preset's portable bundle and what the command printed."""
    folder = tmp_path_factory.mktemp("bundles") / "portable"
    code, out, err = run(
        "--preset", toy_preset, "--output", folder, "--target", "portable", "--verify", "full"
    )
    assert code == 0, err
    return folder, out


def test_the_command_says_what_was_fused(portable, toy_bundle_of_ours):
    listed = "fuse_layer_norm 5, fuse_head 1"
    fused = "fuse_attention 2, fuse_bias 8, separate_lookup 1"
    rewrites = [line for line in portable[1].splitlines() if line.startswith("Rewrites")]
    assert rewrites == [f"Rewrites     {phase}: {listed}" for phase in Phase]
    rewrites = [line for line in toy_bundle_of_ours.out.splitlines() if line.startswith("Rewrites")]
    assert rewrites == [f"Rewrites     model: {listed}, {fused}"]


def test_the_bundle_holds_what_the_portable_one_does(portable, toy_bundle_of_ours):
    folder = toy_bundle_of_ours.folder
    assert {path.name for path in folder.iterdir()} == FILES
    assert {path.name for path in portable[0].iterdir()} == FILES_OF_TWO_GRAPHS
    manifest, other = read_manifest(folder), read_manifest(portable[0])
    assert (manifest.target, other.target) == ("cpu", "portable")
    assert {entry.name for entry in manifest.graphs.values()} == {"model.onnx"}
    assert {phase: entry.name for phase, entry in other.graphs.items()} == {
        Phase.PREFILL: "prefill.onnx",
        Phase.DECODE: "decode.onnx",
    }
    # Other graphs sum in another order.
    same = {"target": other.target, "graphs": other.graphs, "probe": other.probe}
    assert manifest.probe.token_ids == other.probe.token_ids
    assert replace(manifest, **same) == other
    manifest.check_files(folder, weights_hash=True)
    other.check_files(portable[0], weights_hash=True)


def test_all_graphs_read_the_same_places_of_the_weights_file(portable, toy_bundle_of_ours):
    expected = stored_tensors(toy_bundle_of_ours.folder / "model.onnx")
    table = "embeddings/token_embedding/embeddings"
    assert expected.pop(f"{table}.rows") == expected[table]
    for phase in Phase:
        assert stored_tensors(portable[0] / f"{phase}.onnx") == expected


def test_the_graphs_keep_the_contract(portable, toy_bundle_of_ours):
    path = toy_bundle_of_ours.folder / "model.onnx"
    check_graph(path, TOY, Phase.PREFILL, "weights.bin", "float32")
    assert fused_operators(path) == FUSED
    for phase in Phase:
        path = portable[0] / f"{phase}.onnx"
        check_graph(path, TOY, phase, "weights.bin", "float32")
        assert fused_operators(path) == {}


def test_the_portable_bundle_says_what_the_model_says(portable, toy_model, greedy, toy_tokenizer):
    prompts = [[2, *toy_tokenizer.encode(prompt)] for prompt in PROMPTS]
    assert bundle_tokens(portable[0]) == greedy(toy_model, prompts, LENGTH)


def with_other_scale(graph):
    attention = next(node for node in graph.node if node.op_type == "GroupQueryAttention")
    next(a for a in attention.attribute if a.name == "scale").f *= 1.1


def with_wrong_lengths(graph):
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            node.input[5] = "new_lengths"


def with_other_norm(graph):
    first, second = [node for node in graph.node if node.op_type == "LayerNormalization"][:2]
    second.input[1] = first.input[1]


@pytest.mark.parametrize("change", [with_other_scale, with_wrong_lengths, with_other_norm])
def test_wrongly_fused_graphs_are_caught(toy_preset, tmp_path, monkeypatch, change):
    write = export.write_bound_graph

    def write_other(program, extents, weights_name, path):
        write(program, extents, weights_name, path)
        model = onnx.load(path, load_external_data=False)
        change(model.graph)
        onnx.save(model, path)
        return FileEntry.of(path)

    monkeypatch.setattr(export, "write_bound_graph", write_other)
    told = (
        "its logits differ from Keras's|the positions are not those that follow from the graph's inputs"
    )
    with pytest.raises(ExportError, match=told):
        export_bundle(toy_preset, tmp_path / "b", target="cpu", verify="full")
    assert list(tmp_path.iterdir()) == []


# === Other switches, from live models ===

# In one layer; the number of its norms.
MODELS = {
    "opt-350m": (replace(TOY, embedding_dim=16, norm_first=False, final_norm=False), 2),
    "galactica": (replace(TOY, activation="gelu", use_bias=False, norm_affine=False), 3),
}


def token_dictionary():
    """Three prompts of different lengths with room for more."""
    lengths = np.array([[5], [1], [12]])
    mask = np.arange(LENGTH) < lengths
    token_ids = np.random.default_rng(3).integers(4, TOY.vocabulary_size, mask.shape)
    return {"token_ids": np.where(mask, token_ids, 1), "padding_mask": mask}


@pytest.mark.parametrize(("config", "norms"), MODELS.values(), ids=MODELS)
def test_other_models_say_what_their_portable_bundles_say(config, norms, tmp_path):
    backbone = OPTBackbone.from_sizes(replace(config, num_layers=1), dropout=0.0)
    randomize_keras(backbone, seed=5)
    model = OPTCausalLM(backbone)
    summary = export_bundle(model, tmp_path / "cpu", target="cpu", verify="full")
    assert summary.comparison.difference < 1e-5
    counts = {
        "fuse_layer_norm": norms,
        "fuse_head": 1,
        "fuse_attention": 1,
        "fuse_bias": 4 * config.use_bias,
        "separate_lookup": 1,
    }
    assert summary.rewrites == {"model": counts}
    export_bundle(model, tmp_path / "portable", target="portable", verify="none")
    operators = fused_operators(tmp_path / "cpu" / "model.onnx")
    assert operators == {"GroupQueryAttention": 1}
    for sampler in ("greedy", "beam", "contrastive"):
        found = []
        for target in ("portable", "cpu"):
            result = load(tmp_path / target, sampler).generate(token_dictionary(), stop_token_ids=None)
            found.append(result["token_ids"].tolist())
        assert found[0] == found[1]
        assert len({tuple(row[-8:]) for row in found[0]}) == 3


# === Unknown targets ===


def test_an_unknown_target_is_an_error(toy_preset, tmp_path):
    with pytest.raises(ValueError, match="target must be one of portable, cpu, cuda; got 'tpu'"):
        export_bundle(toy_preset, tmp_path / "b", target="tpu")
    with pytest.raises(SystemExit) as caught:
        run("--preset", toy_preset, "--output", tmp_path / "b", "--target", "tpu")
    assert caught.value.code == 2
    assert list(tmp_path.iterdir()) == []

"""Verification after an export: wrong weights and broken graphs are caught."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from exporter import export, export_bundle, verification
from exporter.errors import ExportError
from exporter.verification import verify_graphs
from graphs.contract import ModelConfig
from graphs.manifest import read_manifest
from runtime.stored_probe import TOLERANCES as PROBE_TOLERANCES
from runtime.stored_probe import check_probe, make_probe, open_for_probe
from tests.exporter.export_helpers import (
    FILES,
    fails,
    run,
)
from tests.runtime.toy import approve

pytestmark = pytest.mark.usefixtures("quick_tracing")


# === Verification ===


def altered(recipes, name, alter):
    """The recipes with one tensor that is not made as it should be, array by array."""
    for recipe in recipes:
        names = [tensor.name for tensor in recipe.tensors]
        if name not in names:
            yield recipe
            continue
        assert names == [name]
        make = recipe.make
        yield replace(recipe, make=lambda make=make: (alter(array.copy()) for array in make()))


def swap_query_and_key(kernel):
    kernel[:, :64] = np.roll(kernel[:, :64], 32, axis=1)
    return kernel


def write_altered(monkeypatch, name, alter):
    """Makes the export write another weight than the checkpoint has."""
    write = export.write_weights

    def write_other(recipes, *args):
        return write(altered(recipes, name, alter), *args)

    monkeypatch.setattr(export, "write_weights", write_other)


@pytest.mark.parametrize(
    ("name", "alter"),
    [
        ("embeddings/position_embedding/embeddings", lambda table: np.roll(table, 2, axis=0)),
        ("transformer_layer_0/attention/qkv/kernel", swap_query_and_key),
        ("transformer_layer_1/output/bias", lambda bias: bias[::-1]),
        ("layer_norm/gamma", np.ones_like),
        ("transformer_layer_1/attention_norm/beta", np.zeros_like),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_weights_are_caught(toy_preset, tmp_path, monkeypatch, name, alter):
    write_altered(monkeypatch, name, alter)
    line = fails("--preset", toy_preset, "--output", tmp_path / "b")
    assert line.startswith("the written bundle failed verification: its logits differ from Keras's by")
    assert "of their standard deviation; at most 0.001 is allowed" in line
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_no_numbers_are_caught(toy_preset, tmp_path, monkeypatch):
    write_altered(monkeypatch, "transformer_layer_0/intermediate/kernel", lambda k: k * np.nan)
    line = fails("--preset", toy_preset, "--output", tmp_path / "b")
    assert line.startswith("the written bundle failed verification: it does not run.")
    assert line.endswith(
        "after 0 tokens of a run 288 of 288 logits are NaN or infinite: the model would give no text"
    )
    assert list(tmp_path.iterdir()) == []


def test_one_wrong_token_row_in_a_later_block_is_caught(toy_preset, tmp_path, monkeypatch):
    from exporter.checkpoints import weight_map

    monkeypatch.setattr(weight_map, "BLOCK_BYTES", 50 * 32 * 4)  # six blocks of the token table

    def alter(block):
        if len(block) == 288 % 50:
            block[-1] += 1
        return block

    write_altered(monkeypatch, "embeddings/token_embedding/embeddings", alter)
    with pytest.raises(ExportError, match="its logits differ from Keras's"):
        export_bundle(toy_preset, tmp_path / "b")
    monkeypatch.undo()


def test_blocks_of_any_size_make_the_same_bundle(toy_preset, tmp_path, monkeypatch, toy_bundle_of_ours):
    from exporter.checkpoints import weight_map

    monkeypatch.setattr(weight_map, "BLOCK_BYTES", 50 * 32 * 4)
    summary = export_bundle(toy_preset, tmp_path / "b")
    assert summary.comparison.difference < 1e-4
    expected = read_manifest(toy_bundle_of_ours.folder).weights
    assert read_manifest(tmp_path / "b").weights == expected


def test_graph_verification_does_not_look_at_logits(toy_preset, tmp_path, monkeypatch):
    write_altered(monkeypatch, "layer_norm/gamma", np.ones_like)
    code, out, _ = run("--preset", toy_preset, "--output", tmp_path / "b", "--verify", "graph")
    assert code == 0
    assert "Logits       not compared (--verify full does)" in out
    monkeypatch.setattr(export, "SMALL_ENOUGH_BYTES", 0)  # a model too large to compare unasked
    assert export_bundle(toy_preset, tmp_path / "c").comparison is None
    with pytest.raises(ExportError, match="its logits differ"):
        export_bundle(toy_preset, tmp_path / "d", verify="full")


def test_what_is_run_is_stored(toy_preset, tmp_path):
    kinds = ("full", "run", "graph", "none")
    for verify in kinds:
        export_bundle(toy_preset, tmp_path / verify, verify=verify)
    full, ran, graph, none = (read_manifest(tmp_path / name).probe for name in kinds)
    assert full == ran
    assert graph is none is None
    assert full.prompt == tuple(range(18, 288, 36))
    assert len(full.token_ids) == len(full.logits) == 8
    decoder = open_for_probe(tmp_path / "none")
    assert make_probe(decoder, "fp32") == full
    assert check_probe(decoder, full) == 0.0
    assert PROBE_TOLERANCES == {"fp32": 1e-3, "fp16": 0.01, "bf16": 0.05, "int8": 0.05, "int4": 0.1}
    for precision, allowed in PROBE_TOLERANCES.items():
        assert make_probe(decoder, precision).tolerance == pytest.approx(
            1000 * allowed * full.tolerance
        )


def break_graph(change):
    """`write_bound_graph` with a change to the file."""
    write = export.write_bound_graph

    def write_broken(program, extents, weights_name, path):
        write(program, extents, weights_name, path)
        model = onnx.load(path, load_external_data=False)
        change(model.graph)
        onnx.save(model, path)
        return export.FileEntry.of(path)

    return write_broken


def rename_output(graph):
    for node in graph.node:
        node.output[:] = ["scores" if n == "logits" else n for n in node.output]
    graph.output[0].name = "scores"


def fix_batch(graph):
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def drop_node(graph):
    del graph.node[3]


@pytest.mark.parametrize("change", [rename_output, fix_batch, drop_node])
def test_graph_verification_catches_broken_graphs(toy_preset, tmp_path, monkeypatch, change):
    monkeypatch.setattr(export, "write_bound_graph", break_graph(change))
    with pytest.raises(ExportError, match="the written bundle failed verification: "):
        export_bundle(toy_preset, tmp_path / "b", verify="graph")
    assert list(tmp_path.iterdir()) == []
    export_bundle(toy_preset, tmp_path / "b", verify="none")  # which asks nothing
    assert {p.name for p in (tmp_path / "b").iterdir()} == FILES


def test_graph_verification_catches_a_truncated_file(toy_preset, tmp_path, monkeypatch):
    write = export.write_weights

    def write_less(recipes, extents, path, progress):
        entry = write(recipes, extents, path, progress)
        path.write_bytes(path.read_bytes()[:-1])
        return entry

    monkeypatch.setattr(export, "write_weights", write_less)
    with pytest.raises(ExportError, match=r"weights\.bin was altered: it has"):
        export_bundle(toy_preset, tmp_path / "b", verify="graph")


def test_a_bundle_that_does_not_run_is_caught(toy_preset, tmp_path, monkeypatch):
    def unknown_operator(graph):
        graph.node[3].domain, graph.node[3].op_type = "com.example", "NoSuchOperator"

    monkeypatch.setattr(export, "write_bound_graph", break_graph(unknown_operator))
    monkeypatch.setattr(export, "verify_graphs", lambda folder: None)
    with pytest.raises(ExportError, match=r"it does not run\. (?s:.*)NoSuchOperator"):
        export_bundle(toy_preset, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_pass_that_no_longer_matches_is_an_error(toy_preset, tmp_path, monkeypatch):
    rewrite = export.rewrite

    def rewrite_less(program, target, scheme):
        counts = rewrite(program, target, scheme)
        return {**counts, "fuse_layer_norm": counts["fuse_layer_norm"] - 1}

    monkeypatch.setattr(export, "rewrite", rewrite_less)
    for target, graph, others in (
        ("portable", "prefill", "'fuse_head': 1}"),
        (
            "cpu",
            "model",
            "'fuse_head': 1, 'fuse_attention': 2, 'fuse_bias': 8, 'separate_lookup': 1}",
        ),
    ):
        line = fails("--preset", toy_preset, "--output", tmp_path / "b", "--target", target)
        assert line.startswith(
            f"the {graph} graph was rewritten as {{'fuse_layer_norm': 4, {others}, "
            f"not as {{'fuse_layer_norm': 5, {others}: this Keras or tf2onnx version"
        )
        assert list(tmp_path.iterdir()) == []


def test_without_onnx_runtime_the_reason_is_one_line(toy_preset, tmp_path, monkeypatch):
    blocked = tmp_path / "blocked"
    (blocked / "onnxruntime").mkdir(parents=True)
    (blocked / "onnxruntime" / "__init__.py").write_text("raise ImportError('blocked')\n")
    monkeypatch.syspath_prepend(str(blocked))
    line = fails("--preset", toy_preset, "--output", tmp_path / "b")
    assert "ONNX Runtime is not installed or does not load (blocked)" in line
    assert "opt-onnx[cpu]" in line
    assert not (tmp_path / "b").exists()


def test_graphs_that_a_runtime_would_refuse(toy_bundle_copy):
    """What an export writes is looked at as a stranger's is, whatever else is verified."""
    verify_graphs(toy_bundle_copy)
    model = onnx.load(toy_bundle_copy / "prefill.onnx", load_external_data=False)
    model.graph.node.append(onnx.helper.make_node("Neg", ["logits"], ["negative"]))
    onnx.save(model, toy_bundle_copy / "prefill.onnx")
    approve(toy_bundle_copy, "prefill.onnx")
    with pytest.raises(ExportError, match=r"failed verification: .* wants the operator 'Neg'"):
        verify_graphs(toy_bundle_copy)


# === How much may differ ===

WEIGHT_ERRORS = {"fp32": 0.001, "fp16": 0.01, "int8": 0.15, "int4": 0.6}  # of the standard deviation


def compare(monkeypatch, precision, error):
    """Verifies logits that differ from Keras's by a share of their standard deviation, each by it."""
    config = ModelConfig(50, 1, 1, 4, 4, 32)
    expected = np.random.default_rng(0).normal(0, 3, (2, 16, 50)).astype("float32")
    compared = np.stack([expected[0, 11:16], expected[1, 6:11]])
    signs = np.where(np.indices(compared.shape).sum(axis=0) % 2, 1, -1)
    found = {
        "logits": compared + error * compared.std() * signs,
        "peak_memory_bytes": 1,
        "probe": "null",
    }
    monkeypatch.setattr(verification.layer_walk, "logits", lambda *_: expected)
    monkeypatch.setattr(verification, "_run", lambda *_: found)
    return verification.verify_logits(None, config, None, precision)


@pytest.mark.parametrize("precision", WEIGHT_ERRORS)
def test_what_may_differ_is_fixed_for_each_precision(monkeypatch, precision):
    allowed = WEIGHT_ERRORS[precision]
    found = compare(monkeypatch, precision, 0.99 * allowed)
    assert found.difference == pytest.approx(0.99 * allowed, rel=1e-3)
    assert found.mean_difference == pytest.approx(0.99 * allowed, rel=1e-3)
    with pytest.raises(ExportError, match=f"standard deviation; at most {allowed} is allowed"):
        compare(monkeypatch, precision, 1.01 * allowed)


def test_the_largest_error_counts_where_weights_are_floats_and_the_mean_where_they_are_codes(
    monkeypatch,
):
    once = np.zeros((2, 5, 50))
    once[0, 2, 7] = 0.5
    for precision in ("int8", "int4"):
        assert compare(monkeypatch, precision, once).difference == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(ExportError, match=r"by 5\.00e-01 of"):
        compare(monkeypatch, "fp32", once)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize(
    ("name", "alter"),
    [
        ("transformer_layer_0/intermediate/kernel", lambda codes: np.roll(codes, 1, axis=0)),
        ("transformer_layer_1/attention/output/kernel", np.zeros_like),
        ("embeddings/token_embedding/embeddings", lambda codes: codes[::-1]),
    ],
    ids=["rows turned", "a matrix of zeros", "tokens in another order"],
)
def test_a_damaged_bundle_of_codes_is_refused(
    toy_preset, tmp_path, monkeypatch, precision, name, alter
):
    """Codes that are other numbers than the weights' are told from what rounding costs."""
    write = export.write_weights

    def write_other(recipes, *args):
        def changed():
            for recipe in recipes:
                stored = [tensor.name for tensor in recipe.tensors if tensor.name.startswith(name)]
                if not stored:
                    yield recipe
                    continue
                touched.append(name)
                make = recipe.make

                def first_altered(make=make):
                    for i, array in enumerate(make()):
                        yield np.ascontiguousarray(alter(array.copy())) if i == 0 else array

                yield replace(recipe, make=first_altered)

        return write(changed(), *args)

    touched = []
    monkeypatch.setattr(export, "write_weights", write_other)
    with pytest.raises(ExportError, match="its logits differ from Keras's by"):
        export_bundle(toy_preset, tmp_path / "bad", precision=precision)
    assert touched
    assert not (tmp_path / "bad").exists()

"""ONNX Runtime's dynamic int8 of a bundle: the files, that it runs, what it refuses."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from bench.dynamic_int8 import main
from bench.quality import measure_quality
from graphs.contract import Phase
from runtime.bundle import load_bundle
from runtime.session import SessionDecoder
from tests.runtime.toy import edit_manifest


def test_bundle(toy_bundle, decoder, tmp_path, capsys):
    target = tmp_path / "dynamic"
    assert main([str(toy_bundle), str(target)]) == 0
    made = load_bundle(target, verify=True)
    assert capsys.readouterr().out == f"{target}: {made.manifest.total_bytes / 1e6:.1f} MB\n"
    assert (made.manifest.precision, made.manifest.target) == ("int8", "portable")
    assert made.manifest.source["quantization"] == "onnxruntime.quantization.quantize_dynamic"
    # Of float32 little is left but norms, biases and positions; both graphs share the one file.
    assert made.manifest.weights.size < load_bundle(toy_bundle).manifest.weights.size
    for phase in Phase:
        nodes = Counter(node.op_type for node in onnx.load(made.graph_path(phase)).graph.node)
        assert nodes["MatMulInteger"] == 4 * 2 + 1  # of two layers, and the head
        assert nodes["Gemm"] == 0

    tokens = np.random.default_rng(1).integers(0, 300, (4, 25))
    found = measure_quality(
        {"exact": decoder, "dynamic": SessionDecoder(made, threads=1)},
        "exact",
        tokens[:, :-1],
        tokens[:, 1:],
    )
    assert 0 < found["dynamic"].logit_error.mean < 0.1
    assert found["dynamic"].logit_error.same_choice > 0.8


def test_another_kind_of_bundle(toy_bundle_copy, tmp_path, capsys):
    edit_manifest(toy_bundle_copy, lambda values: values.update(target="cpu"))
    assert main([str(toy_bundle_copy), str(tmp_path / "dynamic")]) == 2
    assert (
        f"{toy_bundle_copy} is fp32 for cpu; make a bundle with: opt-export" in capsys.readouterr().err
    )
    assert not (tmp_path / "dynamic").exists()


@pytest.mark.parametrize("name", ["manifest.json", "notes.txt"])
def test_a_folder_that_exists(toy_bundle, tmp_path, capsys, name):
    (tmp_path / name).write_text("{}", encoding="utf-8")
    assert main([str(toy_bundle), str(tmp_path)]) == 2
    assert f"{tmp_path} exists" in capsys.readouterr().err

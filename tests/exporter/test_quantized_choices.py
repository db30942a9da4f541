"""Choices of precision that do not fit, and calibration texts: what is said, and what they change."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import replace

import numpy as np
import pytest

from exporter import OPTBackbone, OPTCausalLM, export_bundle
from exporter.cli import main
from exporter.errors import ExportError
from graphs.manifest import read_manifest
from tests.exporter.conftest import TOY
from tests.exporter.export_helpers import fails, run, stored_tensors

pytestmark = pytest.mark.usefixtures("quick_tracing")

TEXT = "The quick brown fox imports what the other foxes read. " * 4


# === What does not fit ===

CHOICES = {
    "int8, portable": (
        ["--precision", "int8", "--target", "portable"],
        "int8 needs target 'cpu' or 'cuda'; target 'portable' has fp32",
    ),
    "int4, portable": (
        ["--precision", "int4", "--target", "portable"],
        "int4 needs target 'cpu' or 'cuda'; target 'portable' has fp32",
    ),
    "int8 twice": (
        ["--precision", "int8", "--prefill-precision", "int8"],
        "prefill_precision is a choice of int4 bundles for CPUs, not of int8 for target 'cpu'",
    ),
    "int8 prefill of fp32": (
        ["--prefill-precision", "int8"],
        "prefill_precision is a choice of int4 bundles for CPUs, not of fp32 for target 'cpu'",
    ),
}


@pytest.mark.usefixtures("nothing_is_traced")
@pytest.mark.parametrize(("options", "message"), CHOICES.values(), ids=CHOICES)
def test_choices_that_do_not_fit_each_other(toy_preset, tmp_path, options, message):
    assert fails("--preset", toy_preset, "--output", tmp_path / "b", *options) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_is_traced")
def test_a_calibration_text_for_fp32(toy_preset, tmp_path):
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    line = fails("--preset", toy_preset, "--output", tmp_path / "b", "--calibration", tmp_path / "text")
    assert line == (
        "calibration is for int8 on CPUs and int4; fp32 weights of target 'cpu' do not depend on a text"
    )
    assert not (tmp_path / "b").exists()


def test_an_unknown_prefill_precision(toy_preset, tmp_path):
    with pytest.raises(ValueError, match="prefill_precision must be one of int8; got 'int4'"):
        export_bundle(toy_preset, tmp_path / "b", precision="int4", prefill_precision="int4")


@pytest.mark.usefixtures("nothing_is_traced")
@pytest.mark.parametrize("prefill", [None, "int8"])
@pytest.mark.parametrize("sizes", [{"intermediate_dim": 40}, {"hidden_dim": 24}, {"embedding_dim": 8}])
def test_int4_of_widths_that_no_block_divides(tmp_path, sizes, prefill):
    config = replace(TOY, num_layers=1, **sizes)
    model = OPTCausalLM(OPTBackbone.from_sizes(config, dropout=0.0))
    named = f"{config.hidden_dim}, {config.intermediate_dim}, {config.embedding_width}"
    expected = (
        f"codes in blocks need widths that 16 divides, and this model has widths of {named}; export it "
        "for target cpu as int8, or as floats"
    )
    with pytest.raises(ValueError, match=f"^{expected}$"):
        export_bundle(model, tmp_path / "b", precision="int4", prefill_precision=prefill)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_other_precisions_take_any_width(tmp_path, precision):
    """Some of them divide by 16 and some do not; neither does the width of a head by 8."""
    config = replace(TOY, num_layers=1, hidden_dim=24, intermediate_dim=48)
    model = OPTCausalLM(OPTBackbone.from_sizes(config, dropout=0.0))
    summary = export_bundle(model, tmp_path / "b", precision=precision, verify="full")
    assert summary.comparison.mean_difference < (1e-5 if precision == "fp32" else 0.05)


# === Calibration texts ===


@pytest.mark.usefixtures("nothing_is_traced")
def test_calibration_files_that_cannot_be_read(toy_preset, tmp_path):
    folder, latin = tmp_path / "folder", tmp_path / "latin.txt"
    folder.mkdir()
    latin.write_bytes("Café".encode("latin-1"))
    for path, reason in (
        (tmp_path / "nowhere.txt", "cannot be read: No such file or directory"),
        (folder, "cannot be read: Is a directory"),
        (latin, "is not UTF-8: byte 4 of line 1 is 0xe9; it may be Windows-1252"),
    ):
        options = ["--precision", "int8", "--calibration", path]
        line = fails("--preset", toy_preset, "--output", tmp_path / "b", *options)
        assert line.startswith(f"--calibration {path} {reason}")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("text", ["", "foxes"])
def test_a_calibration_text_that_is_too_short(toy_preset, toy_tokenizer, tmp_path, text):
    (tmp_path / "text").write_text(text, encoding="utf-8")
    options = ["--precision", "int8", "--calibration", tmp_path / "text"]
    line = fails("--preset", toy_preset, "--output", tmp_path / "b", *options)
    assert line == (
        f"the calibration text has {len(toy_tokenizer.encode(text))} tokens; at least 64 are needed, "
        "some hundreds are better: give a longer text"
    )
    assert not (tmp_path / "b").exists()


def test_a_calibration_text_without_a_tokenizer(build_model, tmp_path):
    with pytest.raises(
        ExportError, match="this model has no tokenizer, which a calibration text needs"
    ):
        export_bundle(
            build_model(preprocessor=False), tmp_path / "b", precision="int8", calibration=TEXT
        )
    assert list(tmp_path.iterdir()) == []


def input_scales(folder):
    data = (folder / "weights.bin").read_bytes()
    tensors = stored_tensors(folder / "model.onnx")
    return {
        name: float(np.frombuffer(data[t.offset : t.offset + t.length], np.float32)[0])
        for name, t in tensors.items()
        if name.endswith(".input_scale")
    }


def test_the_text_decides_the_scales(toy_preset, tmp_path):
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    command = ["--preset", toy_preset, "--precision", "int8", "--verify", "graph"]
    for name, options in (("own", ["--calibration", tmp_path / "text"]), ("default", [])):
        code, _, err = run(*command, "--output", tmp_path / name, *options)
        assert code == 0, err
    export_bundle(toy_preset, tmp_path / "same", precision="int8", calibration=TEXT, verify="none")
    hashes = {
        name: read_manifest(tmp_path / name).weights.sha256 for name in ("own", "default", "same")
    }
    assert hashes["own"] == hashes["same"] != hashes["default"]
    own, default = input_scales(tmp_path / "own"), input_scales(tmp_path / "default")
    assert own.keys() == default.keys()
    assert len(own) == 9
    assert sum(own[name] != default[name] for name in own) == 9
    assert all(0 < scale < 1 for scale in own.values())


# === Help ===


def test_the_help_says_what_there_is():
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        main(["--help"])
    text = re.sub(r"\s+", " ", out.getvalue())
    for words in (
        "--precision {fp32,int8,int4,fp16,bf16}",
        "of the weights: fp32, int8 or int4 for CPUs (default: fp32); "
        "fp16, bf16, int8 or int4 for CUDA (default: fp16)",
        "--target {portable,cpu,cuda}",
        "(default: cpu)",
        "--prefill-precision {int8}",
        "(default: one copy for both phases)",
        "--calibration FILE",
        "(default: a text that comes with the package)",
        "--precision int8 --output models/opt_125m",
    ):
        assert words in text

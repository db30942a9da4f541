"""Checkpoints of one model: found, made, exported, and converted once."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from bench import checkpoint_set
from bench.checkpoint_set import convert_checkpoint, find_checkpoints, make_checkpoints
from bench.make_checkpoint import write_checkpoint
from bench.workers.process import WorkerError
from bench.workers.systems import SYSTEMS, System, bundle_system
from graphs.contract import ModelConfig

TINY = ModelConfig(
    vocabulary_size=300,
    num_layers=2,
    num_heads=4,
    hidden_dim=32,
    intermediate_dim=64,
    max_sequence_length=64,
)
OURS = bundle_system("fp32")


def test_missing_checkpoint_says_how_to_make_it(tmp_path):
    with pytest.raises(ValueError, match=r"keras is missing; make it with: python -m bench\.make_ch"):
        find_checkpoints(tmp_path, ["keras"], {})
    with pytest.raises(ValueError, match="--format huggingface --output"):
        find_checkpoints(tmp_path, ["bundle"], {OURS.name: tmp_path / "bundle"})


def test_given_bundle_needs_no_checkpoint(tmp_path, toy_bundle):
    found = find_checkpoints(tmp_path, ["bundle"], {OURS.name: toy_bundle})
    assert found.formats == {}
    assert found.path_of(OURS) == toy_bundle
    assert found.config.hidden_dim == 32


def test_one_bundle_to_export_among_given_ones_needs_a_checkpoint(tmp_path, toy_bundle):
    bundles = {OURS.name: toy_bundle, "opt-onnx-int8": tmp_path / "none"}
    with pytest.raises(ValueError, match="huggingface is missing"):
        find_checkpoints(tmp_path, ["bundle"], bundles)


def test_checkpoints_of_different_sizes(tmp_path, toy_bundle):
    other = ModelConfig(300, 3, 4, 32, 64, 64)
    write_checkpoint(TINY, tmp_path / "keras", format="keras")
    write_checkpoint(other, tmp_path / "huggingface", format="huggingface")
    with pytest.raises(ValueError, match=r"huggingface and .*keras hold models of different sizes"):
        find_checkpoints(tmp_path, ["keras", "huggingface"], {})
    with pytest.raises(ValueError, match=r"toy_bundle and .*huggingface hold models of different"):
        find_checkpoints(tmp_path, ["huggingface", "bundle"], {OURS.name: toy_bundle})


@pytest.mark.parametrize(
    ("kinds", "made"),
    [
        (["bundle"], ["huggingface"]),
        (["keras"], ["keras"]),
        (["bundle", "keras", "huggingface"], ["huggingface", "keras"]),
    ],
)
def test_makes_only_what_is_wanted(tmp_path, kinds, made):
    make_checkpoints(TINY, tmp_path, kinds, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == made


def test_what_each_system_loads(tmp_path):
    make_checkpoints(TINY, tmp_path, ["huggingface", "keras"], seed=0)
    found = find_checkpoints(tmp_path, ["huggingface", "keras"], {})
    paths = {name: found.path_of(system).name for name, system in SYSTEMS.items()}
    assert paths == {
        "keras-hub": "keras",
        "keras-hub-xla": "keras",
        "transformers": "huggingface",
        "optimum-onnx": "optimum-onnx",
        "ctranslate2-fp32": "ctranslate2-fp32",
        "ctranslate2-int8": "ctranslate2-int8",
        "openvino-fp32": "openvino-fp32",
        "openvino-int8": "openvino-int8",
        "openvino-int4": "openvino-int4",
    }


# === Conversions ===


@pytest.fixture
def checkpoints(tmp_path):
    write_checkpoint(TINY, tmp_path / "huggingface", format="huggingface")
    return find_checkpoints(tmp_path, ["huggingface"], {})


def fake(**options):
    return System(
        "fake-int8", "tests.bench.fake_worker", "huggingface", "int8", converted=True, options=options
    )


@pytest.fixture
def conversions(monkeypatch):
    """Systems whose workers were asked to convert."""
    asked = []
    convert = checkpoint_set.convert

    def counting(system, conversion, *rest):
        asked.append(system)
        convert(system, conversion, *rest)

    monkeypatch.setattr(checkpoint_set, "convert", counting)
    return asked


def converted(checkpoints, system):
    return convert_checkpoint(checkpoints, system, sys.executable)


def test_a_conversion_is_kept_beside_the_checkpoints(checkpoints, conversions):
    assert converted(checkpoints, fake(bits=8))
    folder = checkpoints.folder / "fake-int8"
    text = (folder / "converted.txt").read_text()
    assert text == "['config.json', 'model.safetensors'] {'bits': 8}"
    made_of = json.loads((folder / "bench-conversion.json").read_text())
    assert set(made_of["files"]) == {"config.json", "model.safetensors"}
    assert made_of["options"] == {"bits": 8}
    assert not converted(checkpoints, fake(bits=8))
    assert len(conversions) == 1


@pytest.mark.parametrize("change", ["options", "source", "requirements", "interrupted"])
def test_a_conversion_of_something_else_is_made_anew(checkpoints, conversions, monkeypatch, change):
    assert converted(checkpoints, fake(bits=8))
    again = fake(bits=8)
    if change == "options":
        again = fake(bits=4)
    elif change == "source":
        (checkpoints.formats["huggingface"] / "config.json").write_text("{}")
    elif change == "requirements":
        again = replace(again, environment="ctranslate2")
    else:
        (checkpoints.folder / "fake-int8" / "bench-conversion.json").unlink()
    assert converted(checkpoints, again)
    assert len(conversions) == 2
    assert not converted(checkpoints, again)


def test_a_failed_conversion_leaves_nothing(checkpoints):
    with pytest.raises(WorkerError, match="fake-int8 failed to convert"):
        converted(checkpoints, fake(fault="convert"))
    assert [path.name for path in checkpoints.folder.iterdir()] == ["huggingface"]

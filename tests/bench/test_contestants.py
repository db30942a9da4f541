"""Who takes part: names of systems and environments, precisions, bundles."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from bench.contestants import choose_contestants, choose_systems, name_bundles
from bench.workers.systems import OURS, PRECISIONS, SYSTEMS, bundle_system
from graphs import manifest
from tests.runtime.toy import edit_manifest


def names(*arguments):
    return [system.name for system in choose_systems(*arguments)]


def test_systems_by_name():
    ours = [bundle_system("int8"), bundle_system("int4")]
    assert names(["transformers", OURS], PRECISIONS, ours) == [
        "transformers",
        "opt-onnx-int8",
        "opt-onnx-int4",
    ]
    assert SYSTEMS["keras-hub-xla"].options == {"jit_compile": True}


def test_an_environment_stands_for_its_systems():
    assert names(["openvino", "ctranslate2"], PRECISIONS, []) == [
        "openvino-fp32",
        "openvino-int8",
        "openvino-int4",
        "ctranslate2-fp32",
        "ctranslate2-int8",
    ]
    # A system's own name comes first.
    assert names(["keras-hub"], PRECISIONS, []) == ["keras-hub"]


def test_precisions_choose_among_the_others():
    found = names([OURS, *SYSTEMS], ["int8", "int4"], [bundle_system("fp32")])
    assert found == ["opt-onnx-fp32", "ctranslate2-int8", "openvino-int8", "openvino-int4"]


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        (["gpt"], "--systems: there is no 'gpt'; choose among opt-onnx, keras-hub,"),
        (["keras-hub", "keras-hub"], "--systems names a system twice: keras-hub,keras-hub"),
        (["openvino-int8", "openvino"], "--systems names a system twice"),
    ],
)
def test_bad_names(systems, message):
    with pytest.raises(ValueError, match=message):
        choose_systems(systems, PRECISIONS, [])


# === Bundles ===


@pytest.fixture
def bundle_of(toy_bundle, tmp_path, monkeypatch):
    """Makes a folder whose manifest says that it has a precision."""
    monkeypatch.setattr(manifest, "PRECISIONS", ("fp32", "int8", "int4"))

    def make(name, precision):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        shutil.copy(toy_bundle / "manifest.json", folder)
        edit_manifest(folder, lambda values: values.update(precision=precision))
        return folder

    return make


def test_bundles_are_named_after_their_precision(bundle_of):
    folders = [bundle_of("a", "int8"), bundle_of("b", "int4"), bundle_of("c", "int8")]
    found = {system.name: (system.precision, path) for system, path in name_bundles(folders).items()}
    assert found == {
        "opt-onnx-int8": ("int8", folders[0]),
        "opt-onnx-int4": ("int4", folders[1]),
        "opt-onnx-int8:c": ("int8", folders[2]),
    }


def test_the_same_bundle_three_times(bundle_of):
    folder = bundle_of("a", "int8")
    with pytest.raises(ValueError, match="--bundle gives two bundles of one precision and name"):
        name_bundles([folder] * 3)


def choose(tmp_path, **options):
    return choose_contestants(
        **{
            "systems": [OURS],
            "precisions": PRECISIONS,
            "bundles": None,
            "environments": tmp_path / "environments",
            "temporary": Path("temporary"),
            **options,
        }
    )


def test_bundles_are_exported_in_each_precision_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "PRECISIONS", ("fp32", "fp16", "int8"))
    found = choose(tmp_path, precisions=["int8", "fp32"])
    assert found.bundles == {
        "opt-onnx-int8": Path("temporary/bundle-int8"),
        "opt-onnx-fp32": Path("temporary/bundle-fp32"),
    }
    assert [system.precision for system in found.systems] == ["int8", "fp32"]
    assert set(found.pythons.values()) == {sys.executable}


def test_given_bundles_take_part_at_any_precision(tmp_path, bundle_of):
    folder = bundle_of("a", "int4")
    found = choose(tmp_path, bundles=[str(folder)], precisions=["int8"])
    assert found.bundles == {"opt-onnx-int4": folder}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precisions": ["fp8"]}, "--precision: there is no 'fp8'; choose among fp32, int8, int4"),
        ({"bundles": ["no/bundle"]}, "--bundle: there is no folder no/bundle"),
        (
            {"systems": ["transformers"], "precisions": ["int4"]},
            "--systems transformers has none of the precision int4",
        ),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        choose(tmp_path, **options)

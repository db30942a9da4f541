"""The hostile bundles, and a few seconds of the bit flips, whose script runs more of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("tqdm")

from runtime.bundle import load_bundle
from runtime.errors import BundleError
from tests.faults import bit_flips, hostile_bundles
from tests.faults.bit_flips import Flip, Outcome
from tests.faults.bundle_kinds import KINDS
from tests.faults.watched_bundle import OUTSIDE, PROMPT
from tests.runtime.packs.packing import make_cpu_bundle

ALL = [(group, kind) for group, kinds in KINDS.items() for kind in kinds]
# What loading refuses before it opens anything else; a pipe that is opened would stop the tests.
REFUSED = [kind for group, kind in ALL if kind.error and group != "packs" and "pipe" not in kind.name]


def test_there_are_many_kinds_each_once() -> None:
    assert len({kind.name for _, kind in ALL}) == len(ALL) >= 60


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the whole bundle says."""
    error, text, opened = hostile_bundles.run(hostile_bundles.TOY, tmp_path_factory.mktemp("whole"))
    assert (error, opened) == (None, [])
    assert text.startswith(PROMPT)
    return text


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.name)
def test_loading_refuses(kind: hostile_bundles.Kind, toy_bundle_copy: Path, tmp_path: Path) -> None:
    """In this process: what opening such a bundle does is for the test of all of them."""
    shutil.copytree(toy_bundle_copy, tmp_path / OUTSIDE)
    os.mkfifo(tmp_path / OUTSIDE / "pipe")
    kind.make(toy_bundle_copy)

    def load() -> None:
        bundle = load_bundle(toy_bundle_copy, verify=True)
        assert bundle.tokenizer is not None
        bundle.tokenizer.vocabulary_size()

    with pytest.raises(BundleError) as raised:
        load()
    told = str(raised.value)
    assert kind.error is not None
    assert kind.error in told
    assert "\n" not in told
    assert len(told) <= 2000


@pytest.mark.parametrize("kind", [kind for _, kind in ALL if kind not in REFUSED], ids=lambda k: k.name)
def test_a_hostile_bundle(kind: hostile_bundles.Kind, tmp_path: Path, text: str) -> None:
    outcome = hostile_bundles.run_kind(kind, tmp_path, text)
    assert outcome.problem is None, outcome


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.name)
def test_a_bundle_that_loading_refuses(kind: hostile_bundles.Kind, tmp_path: Path, text: str) -> None:
    """In a process of its own that is watched and limited."""
    outcome = hostile_bundles.run_kind(kind, tmp_path, text)
    assert outcome.problem is None, outcome


def test_the_runner_sees_what_is_not_as_it_should_be(tmp_path: Path, text: str) -> None:
    harmless = hostile_bundles.Kind("nothing", lambda folder: None, "an error")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert hostile_bundles.run_kind(harmless, tmp_path / "a", text).problem == "ended in None"
    nothing = hostile_bundles.Kind("nothing", lambda folder: None, None)
    outcome = hostile_bundles.run_kind(nothing, tmp_path / "b", "x")
    assert outcome.problem == "does not say 'x'"


def test_the_table_of_outcomes() -> None:
    outcomes = [
        ("files", hostile_bundles.Outcome("a", "BundleError", "x | y\nz", None)),
        ("packs", hostile_bundles.Outcome("b", None, "text", None)),
    ]
    assert hostile_bundles.table(outcomes).splitlines()[2:] == [
        "| files | a | BundleError: x \\| y z |",
        "| packs | b | not used; the right text |",
    ]


# === Flipped bits ===


def test_flipped_bits_are_found(toy_bundle_copy: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "replaced by the run"))
    outcomes = bit_flips.run([make_cpu_bundle(toy_bundle_copy)], tmp_path / "work", 16, seed=1)
    assert {name: len(found) for name, found in outcomes.items()} == dict.fromkeys(
        [
            "manifest.json",
            "merges.txt",
            "prefill.onnx",
            "vocabulary.json",
            "weights.bin",
            "packed/…/info.json",
            "packed/…/model.onnx",
            "packed/…/weights.bin",
        ],
        2,
    )
    assert bit_flips.is_within_bounds(o for found in outcomes.values() for o in found)
    for name, found in outcomes.items():
        if not name.endswith("weights.bin"):
            assert all(outcome.loaded for outcome in found), name


def test_flips_are_spread(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1000))
    (tmp_path / "b").write_bytes(bytes(5))
    files = [(tmp_path, "a"), (tmp_path, "b")]
    flips = [flip for _, flip in bit_flips.plan(files, 40, seed=0)]
    assert flips == [flip for _, flip in bit_flips.plan(files, 40, seed=0)]
    assert [flip.byte // 100 for flip in flips if flip.file == "a"] == [*range(10)] * 2
    assert {flip.byte for flip in flips if flip.file == "b"} == {*range(5)}
    assert {flip.bit for flip in flips} == {*range(8)}


def test_bounds_and_table() -> None:
    good, wrong = Outcome(checked=True, loaded=True), Outcome(checked=True, wrong_verified=True)
    assert bit_flips.is_within_bounds([good])
    for bad in (wrong, Outcome(), Outcome(checked=True, crashed=True)):
        assert not bit_flips.is_within_bounds([good, bad])
    lines = bit_flips.table({"a": [good], "b": [wrong, Outcome(crashed=True)]}).splitlines()
    assert lines[2:] == [
        "| a | 1 | 1 | 1 | 0 | 0 | 0 |",
        "| b | 2 | 1 | 0 | 0 | 1 | 1 |",
        "| all | 3 | 2 | 1 | 0 | 1 | 1 |",
    ]


def test_a_crash_is_counted(
    toy_bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flips = bit_flips.FlipRun([toy_bundle_copy], tmp_path / "work")
    ((folder, _), *_) = flips.files
    before = (folder / "merges.txt").read_bytes()
    run = flips._run
    monkeypatch.setattr(flips, "_run", lambda function, *arguments: run(os._exit, 3))
    assert flips.outcome(folder, Flip("merges.txt", 3, 1)) == Outcome(crashed=True)
    flips.close()
    assert (folder / "merges.txt").read_bytes() == before

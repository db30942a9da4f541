"""Packed weights: made once, used again, made anew where they do not fit, and never in the way."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphs.contract import Phase
from graphs.plain_files import hash_file
from graphs.sealed_json import seal
from runtime import BundleError, Generator, session_opener
from runtime.bundle import load_bundle
from runtime.cli import main
from runtime.packs import packed_weights
from runtime.packs.pack_folder import DATA_FILE, INFO_FILE, MODEL_FILE
from runtime.system.file_lock import locked
from tests.runtime.packs.packing import (
    alter_weights,
    logits,
    make_cpu_bundle,
    open_decoder,
    packs,
    stamps,
    start_program,
)
from tests.runtime.toy import CASES, approve, edit_manifest, flip_byte

TOLERANCE = 2e-5  # of logits with a standard deviation of about 2


@pytest.fixture
def folder(toy_bundle_copy: Path) -> Path:
    """A bundle whose weights are packed; a test may alter it."""
    return make_cpu_bundle(toy_bundle_copy)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder of packs."""
    monkeypatch.setattr(packed_weights, "user_cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "opt-onnx" / "packed"


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def wanted(toy_bundle: Path) -> np.ndarray:
    """Logits of the portable bundle, whose weights are not packed."""
    return logits(toy_bundle)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graph files that are packed from now on, slowly enough for others to come meanwhile."""
    names: list[str] = []
    write = session_opener.SessionOpener._write_pack

    def recorded(self: Any, graph_path: Path, target: Path) -> None:
        names.append(graph_path.name)
        time.sleep(0.2)
        write(self, graph_path, target)

    monkeypatch.setattr(session_opener.SessionOpener, "_write_pack", recorded)
    return names


def assert_right(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= TOLERANCE


# === Making and using a pack ===


def test_a_pack_is_made_once_and_used_again(
    folder: Path, written: list[str], wanted: np.ndarray, cache: Path
) -> None:
    first = logits(folder)
    before = stamps(folder / "packed")
    second = logits(folder)
    assert written == ["prefill.onnx"]
    assert stamps(folder / "packed") == before
    assert_right(first, wanted)
    assert np.array_equal(first, second)
    assert np.array_equal(first, logits(folder, packed_weights=False))
    assert not cache.exists()


def test_what_a_pack_says_of_itself(folder: Path) -> None:
    open_decoder(folder)
    ((name, pack),) = packs(folder / "packed").items()
    info = json.loads((pack / INFO_FILE).read_text("utf-8"))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    key = info["key"]
    assert len(name) == 16
    assert key["graph"] == manifest["graphs"]["prefill"]["sha256"]
    assert key["weights"] == manifest["weights"]["sha256"]
    assert key["runtime"].startswith(f"{session_opener.ort.__version__} ORT Build Info: ")
    fusions = " ".join(session_opener.SLOW_FUSIONS)
    assert key["options"] == {**session_opener.EXACT, "disabled_optimizers": fusions}
    assert info["files"] == {
        file: {"size": (pack / file).stat().st_size, "sha256": hash_file(pack / file)}
        for file in (MODEL_FILE, DATA_FILE)
    }
    # The originals are there too.
    assert info["files"][DATA_FILE]["size"] > manifest["weights"]["size"]
    assert set(info) == {"key", "files", "signature", "sha256"}


def test_a_session_maps_its_weights_from_the_pack(folder: Path, wanted: np.ndarray) -> None:
    logits(folder)
    manifest = (folder / "manifest.json").read_text("utf-8")
    alter_weights(folder)
    (folder / "manifest.json").write_text(manifest, "utf-8")
    assert_right(logits(folder), wanted)


def test_nothing_is_written_unless_wanted(folder: Path, toy_bundle: Path, wanted: np.ndarray) -> None:
    assert_right(logits(folder, packed_weights=False), wanted)
    generator = Generator.from_bundle(folder, device="cpu", threads=1, packed_weights=False)
    generator.generate("the", max_length=4)
    assert not (folder / "packed").exists()
    assert not (toy_bundle / "packed").exists()
    Generator.from_bundle(folder, device="cpu", threads=1)
    assert len(packs(folder / "packed")) == 1


def test_the_command_tells_that_it_packs(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder), "the", "--max-length", "4", "--sampler", "greedy", "--device", "cpu"]
    assert main([*arguments, "--no-packed-weights"]) == 0
    assert not (folder / "packed").exists()
    alone = capfd.readouterr()
    assert main(arguments) == 0
    first = capfd.readouterr()
    assert main(arguments) == 0
    second = capfd.readouterr()
    assert (alone.err, second.err) == ("", "")
    assert first.err == "Packing weights for this CPU (once): 0 MB ...\n"
    assert alone.out == first.out == second.out != ""


def test_the_command_warns_in_one_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "packed").write_text("no folder")
    (folder.parent / "cache").write_text("no folder")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main([str(folder), "the", "--max-length", "4", "--device", "cpu"]) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("Warning: the weights are packed in the memory of this process alone")


# === One session for both phases ===


def test_one_graph_file_is_one_session(folder: Path, written: list[str]) -> None:
    decoder = open_decoder(folder)
    assert decoder._sessions[Phase.PREFILL] is decoder._sessions[Phase.DECODE]
    assert written == ["prefill.onnx"]
    cache = decoder.new_cache(1, 64)
    case = CASES[3]
    found = [decoder.append(cache, np.array([case["prompt"]]), np.array([len(case["prompt"])]))]
    tokens = [int(found[0].logits.argmax())]
    while len(tokens) < len(case["continuation"]):
        output = decoder.append(cache, np.array([tokens[-1:]]), np.ones(1, np.int32))
        tokens.append(int(output.logits.argmax()))
    assert tokens == case["continuation"]


def test_two_graph_files_are_two_sessions(
    toy_bundle_copy: Path, written: list[str], wanted: np.ndarray
) -> None:
    edit_manifest(toy_bundle_copy, lambda values: values.update(target="cpu"))
    decoder = open_decoder(toy_bundle_copy)
    assert decoder._sessions[Phase.PREFILL] is not decoder._sessions[Phase.DECODE]
    assert sorted(written) == ["decode.onnx", "prefill.onnx"]
    assert len(packs(toy_bundle_copy / "packed")) == 2
    assert_right(logits(toy_bundle_copy), wanted)
    assert len(written) == 2


# === Several at once, and builders that die ===


def test_threads_wait_for_one_builder(folder: Path, written: list[str], wanted: np.ndarray) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: logits(folder), range(4)))
    assert written == ["prefill.onnx"]
    for result in results:
        assert_right(result, wanted)


def test_processes_wait_for_one_builder(folder: Path, repository: Path, wanted: np.ndarray) -> None:
    programs = [start_program(repository, folder) for _ in range(2)]
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("go\n")
        program.stdin.flush()
    answers = [program.communicate() for program in programs]
    for out, _ in answers:
        assert_right(np.frombuffer(bytes.fromhex(out), np.float32).reshape(wanted.shape), wanted)
    assert "".join(err for _, err in answers).count("Packing weights") == 1
    assert len(packs(folder / "packed")) == 1


def test_who_waits_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture, wanted: np.ndarray, written: list[str]
) -> None:
    (folder / "packed").mkdir()
    with caplog.at_level("INFO", "runtime"), ThreadPoolExecutor(1) as pool:
        with locked(folder / "packed" / ".lock", patience=60):
            result = pool.submit(logits, folder)
            while not caplog.messages:
                assert not result.done()
                time.sleep(0.01)
            assert written == []
        assert_right(result.result(), wanted)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "Waiting for packed weights ...",
        "Packing weights for this CPU (once)",
    ]


def test_a_builder_that_stands_still_is_not_waited_for(
    folder: Path, wanted: np.ndarray, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "packed").mkdir()
    monkeypatch.setattr(packed_weights, "PATIENCE_SECONDS", 0.3)
    with locked(folder / "packed" / ".lock", patience=60):
        started = time.monotonic()
        with pytest.warns(RuntimeWarning) as caught:
            assert_right(logits(folder), wanted)
        assert 0.3 <= time.monotonic() - started < 10
    (warning,) = caught
    for fragment in (
        "packed in the memory of this process alone",
        f"process {os.getpid()} has held {folder / 'packed' / '.lock'} for 0 s and shows no progress; ",
        "; let it go on or end it",
    ):
        assert fragment in str(warning.message)
    assert packs(folder / "packed") == {}
    assert not cache.exists()
    assert_right(logits(folder), wanted)
    assert len(packs(folder / "packed")) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGSTOP")
def test_a_builder_that_was_stopped(
    folder: Path, repository: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_weights, "PATIENCE_SECONDS", 0.5)
    program = start_program(repository, folder, STOP + STOPS["half written"])
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write("go\n")
    program.stdin.flush()
    assert program.stdout.readline() == "stopped\n"
    program.send_signal(signal.SIGSTOP)
    try:
        with pytest.warns(RuntimeWarning, match=f"process {program.pid} has held .*packed/.lock for"):
            assert_right(logits(folder), wanted)
    finally:
        program.kill()
        program.communicate()
    assert_right(logits(folder), wanted)
    assert len(packs(folder / "packed")) == 1


GROW = """
def grow(self, graph_path, folder):
    for size in range(1, 30):
        (folder / "weights.bin").write_bytes(bytes(size))
        time.sleep(0.1)
    write(self, graph_path, folder)
write = session_opener.SessionOpener._write_pack
session_opener.SessionOpener._write_pack = grow
"""
READ = """
show = pack_folder.PackFolder.show_progress
def slowly(self):
    time.sleep(1.1)
    show(self)
pack_folder.PackFolder.show_progress = slowly
"""


@pytest.mark.parametrize("change", [GROW, READ], ids=["writes", "hashes"])
def test_a_builder_at_work_is_waited_for(
    folder: Path, repository: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """However long it takes: only a standstill counts."""
    monkeypatch.setattr(packed_weights, "PATIENCE_SECONDS", 2)
    program = start_program(repository, folder, change)
    assert program.stdin is not None
    program.stdin.write("go\n")
    program.stdin.flush()
    while not (folder / "packed" / ".lock").exists() or not (folder / "packed" / ".lock").read_text():
        assert program.poll() is None
        time.sleep(0.01)
    started = time.monotonic()
    assert_right(logits(folder), wanted)
    assert time.monotonic() - started > 2
    assert program.communicate()[1].count("Packing weights") == 1
    assert len(packs(folder / "packed")) == 1


def test_the_patience_fits_the_size_of_the_pack(folder: Path) -> None:
    """6.7 billion weights of 4 bits take minutes on a slow machine, and show nothing for a while."""
    options: Any = {"runtime": "", "options": {}, "write": lambda path, folder: None}
    bundle = load_bundle(folder)
    (graph,) = set(bundle.manifest.graphs.values())
    assert 30 <= packed_weights.PackedWeights(bundle, **options)._patience(graph) < 31
    large = replace(bundle.manifest.weights, size=3_500_000_000)
    bundle = replace(bundle, manifest=replace(bundle.manifest, weights=large))
    assert 240 <= packed_weights.PackedWeights(bundle, **options)._patience(graph) < 400


STOP = """
def stop(*arguments):
    print("stopped", flush=True)
    time.sleep(60)
"""
STOPS = {
    "before writing": "session_opener.SessionOpener._write_pack = stop",
    "half written": """
def half(self, graph_path, folder):
    (folder / "weights.bin").write_bytes(bytes(1000))
    stop()
session_opener.SessionOpener._write_pack = half""",
    "written": "pack_folder.PackFolder._write_info = stop",
    "complete but for the name": """
write = pack_folder.PackFolder._write_info
pack_folder.PackFolder._write_info = lambda *arguments: (write(*arguments), stop())""",
}


@pytest.mark.parametrize("change", STOPS.values(), ids=STOPS)
def test_a_killed_builder_leaves_no_pack(
    folder: Path, repository: Path, written: list[str], wanted: np.ndarray, change: str
) -> None:
    program = start_program(repository, folder, STOP + change)
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write("go\n")
    program.stdin.flush()
    assert program.stdout.readline() == "stopped\n"
    program.kill()
    program.communicate()
    assert any(path.name.startswith(".building-") for path in (folder / "packed").iterdir())
    assert_right(logits(folder), wanted)
    assert written == ["prefill.onnx"]
    assert len(packs(folder / "packed")) == 1


# === Packs that are not whole ===


def truncate(name: str, count: int = 1) -> Any:
    return lambda pack: (pack / name).write_bytes((pack / name).read_bytes()[:-count])


def overwrite(pack: Path) -> None:
    """Keeps the size, so that only loading can tell."""
    (pack / MODEL_FILE).write_bytes(bytes((pack / MODEL_FILE).stat().st_size))


def say(text: str) -> Any:
    return lambda pack: (pack / INFO_FILE).write_text(text, "utf-8")


DAMAGES = {
    "truncated weights": truncate(DATA_FILE),
    "truncated model": truncate(MODEL_FILE),
    "missing weights": lambda pack: (pack / DATA_FILE).unlink(),
    "missing information": lambda pack: (pack / INFO_FILE).unlink(),
    "information cut off": truncate(INFO_FILE, 5),
    "empty object": say("{}"),
    "no object": say("[5]"),
    "no sizes": say('{"key": {}, "files": {}}'),
    "sizes of another kind": say('{"key": {}, "files": 5}'),
    "another key": lambda pack: edit_info(pack, runtime="0.1"),
    "altered model": lambda pack: flip_byte(pack / MODEL_FILE, 300),
    "a model that does not load": overwrite,
}


def edit_info(pack: Path, **values: Any) -> None:
    info = json.loads((pack / INFO_FILE).read_text("utf-8"))
    info["key"].update(values)
    del info["sha256"]
    (pack / INFO_FILE).write_text(seal(info), "utf-8")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_pack_is_made_anew(
    folder: Path, written: list[str], wanted: np.ndarray, damage: Any
) -> None:
    logits(folder)
    ((name, pack),) = packs(folder / "packed").items()
    damage(pack)
    assert_right(logits(folder), wanted)
    assert len(written) == 2
    assert list(packs(folder / "packed")) == [name]
    assert_right(logits(folder), wanted)
    assert len(written) == 2


def test_packs_that_never_load_are_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, wanted: np.ndarray
) -> None:
    made: list[Path] = []

    def write_nonsense(self: Any, graph_path: Path, target: Path) -> None:
        made.append(target)
        for name in (MODEL_FILE, DATA_FILE):
            (target / name).write_bytes(b"nonsense")

    monkeypatch.setattr(session_opener.SessionOpener, "_write_pack", write_nonsense)
    with pytest.warns(RuntimeWarning, match="the pack that was made does not load: ONNX Runtime"):
        found = logits(folder)
    assert_right(found, wanted)
    assert len(made) == 2
    assert packs(folder / "packed") == {}


def test_a_graph_that_cannot_be_loaded_is_an_error(folder: Path) -> None:
    path = folder / "prefill.onnx"
    data = path.read_bytes()
    assert data.startswith(b"\x08\x08")  # the version of ONNX's own format
    path.write_bytes(b"\x08\x63" + data[2:])
    approve(folder, "prefill.onnx")
    edit_manifest(folder, lambda v: v["graphs"].update(decode=v["graphs"]["prefill"]))
    with pytest.raises(BundleError, match=r"ONNX Runtime cannot load .*toy_bundle.prefill\.onnx"):
        open_decoder(folder)
    assert packs(folder / "packed") == {}

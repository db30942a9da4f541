"""`opt-export --check`: what it says of a sound bundle, and of each kind of fault."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.check import UnsoundBundleError, check_bundle
from exporter.cli import main
from graphs.manifest import read_manifest
from runtime.packs import packed_weights
from tests.exporter.export_helpers import run
from tests.runtime.packs.packing import make_cpu_bundle, open_decoder
from tests.runtime.toy import approve, edit_manifest, flip_byte

FAULTS = {
    "manifest": (lambda f: flip_byte(f / "manifest.json", 1), "manifest.json is not JSON"),
    "white space": (
        lambda f: append(f / "manifest.json", b"\n"),
        "manifest.json was altered: its SHA-256",
    ),
    "graph": (
        lambda f: flip_byte(f / "decode.onnx", 99),
        "decode.onnx was altered: its SHA-256 is another",
    ),
    "weights": (
        lambda f: flip_byte(f / "weights.bin", 9),
        "weights.bin was altered: its SHA-256 is another",
    ),
    "size": (
        lambda f: append(f / "merges.txt", b"x"),
        "merges.txt was altered: it has 83 bytes, not 82",
    ),
    "missing": (lambda f: (f / "merges.txt").unlink(), "merges.txt is missing or no regular file"),
    "surplus": (
        lambda f: (f / "notes.txt").write_text("x"),
        "notes.txt is no part of the bundle; remove it",
    ),
    "packed": (lambda f: (f / "packed").symlink_to("/tmp"), "packed is a link or no folder; remove it"),
    "pack": (
        lambda f: (f / "packed" / "a").mkdir(parents=True),
        "is not a whole pack of weights; remove",
    ),
    "tokenizer": (
        lambda f: change(f / "vocabulary.json", b"</s>", b"</t>"),
        "Cannot find special token",
    ),
    "other weights": (
        lambda f: (flip_byte(f / "weights.bin", 32 * 4 * 200 + 3), approve(f, "weights.bin")),
        "does not run as it did at export: after ",
    ),
    "a graph that is not ONNX": (
        lambda f: change(f / "decode.onnx", b"Squeeze", b"Softmax"),
        "decode.onnx",
    ),
}


def append(path, data):
    path.write_bytes(path.read_bytes() + data)


def change(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    approve(path.parent, path.name)


def test_a_sound_bundle(toy_bundle):
    code, out, err = run("--check", toy_bundle)
    assert code == 0
    told = err.splitlines()
    assert told[0] == "Hashing (191 kB) …"
    assert told[1].startswith("Hashing: 100% of 191 kB")
    lines = out.splitlines()
    assert [re.sub(r"^ok +[0-9.]+ s  |[:,].*", "", line) for line in lines] == [
        "manifest",
        "files",
        "SHA-256 of all files",
        "graphs",
        "tokenizer",
        "a run of 8 tokens",
        f"{toy_bundle} is sound",
    ]
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[0].endswith("manifest: its own SHA-256; 28800 parameters, fp32 for portable")
    assert lines[3].endswith("weights within weights.bin, valid for the ONNX checker")
    assert run("--check", toy_bundle, "--quiet") == (0, "", "")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault(toy_bundle_copy, fault):
    make, message = FAULTS[fault]
    make(toy_bundle_copy)
    code, out, err = run("--check", toy_bundle_copy, "--quiet")
    assert (code, out) == (1, "")
    assert err.startswith("opt-export: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_pack_is_checked_whoever_made_it(toy_bundle_copy, tmp_path, monkeypatch):
    folder = make_cpu_bundle(toy_bundle_copy)
    monkeypatch.setattr(packed_weights, "user_cache_folder", lambda: tmp_path / "someone")
    open_decoder(folder)
    monkeypatch.setattr(packed_weights, "user_cache_folder", lambda: tmp_path / "someone else")
    lines = []
    check_bundle(folder, lines.append)
    assert [line for line in lines if "SHA-256 of 1 packs of weights" in line]
    (pack,) = [path for path in (folder / "packed").iterdir() if path.is_dir()]
    for name in ("weights.bin", "model.onnx", "info.json"):
        kept = (pack / name).read_bytes()
        flip_byte(pack / name, 400)
        with pytest.raises(UnsoundBundleError, match=r"packed.*remove .*made anew"):
            check_bundle(folder)
        (pack / name).write_bytes(kept)
    (pack / "more").write_text("")
    with pytest.raises(UnsoundBundleError, match="is not a whole pack of weights"):
        check_bundle(folder)


@pytest.mark.parametrize("stage", ["manifest", "files", "SHA-256", "graphs", "tokenizer", "a run"])
@pytest.mark.parametrize("way", ["as a whole", "manifest only"])
def test_a_bundle_that_is_replaced_between_two_checks(toy_bundle_copy, tmp_path, stage, way):
    """It is neither sound nor altered: nobody has looked at the whole of it."""
    other = shutil.copytree(toy_bundle_copy, tmp_path / "other")
    edit_manifest(other, lambda values: values["source"].update(note="another"))
    if way == "as a whole":
        flip_byte(other / "weights.bin", 32 * 4 * 200 + 3)
        approve(other, "weights.bin")

    def replace_then(line):
        if stage in line and not (tmp_path / "done").exists():
            (tmp_path / "done").touch()
            if way == "as a whole":
                toy_bundle_copy.rename(tmp_path / "aside")
                other.rename(toy_bundle_copy)
            else:
                (other / "manifest.json").replace(toy_bundle_copy / "manifest.json")

    with pytest.raises(UnsoundBundleError) as caught:
        check_bundle(toy_bundle_copy, replace_then)
    assert str(caught.value) == (f"{toy_bundle_copy} was replaced while it was checked; check it again")


# === Sound, however it lies there ===


def share(folder):
    """Hard links to all files, as `cp --link` makes them."""
    shutil.copytree(folder, folder.with_name("shared"), copy_function=os.link)


def link_to(folder):
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def make_read_only(folder):
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)


def leave_removed_packs(folder):
    (folder / "packed" / ("0" * 16)).mkdir(parents=True)
    for path in (folder, folder / "packed", folder / "packed" / ("0" * 16)):
        (path / ".nfs000000000000a1b200000003").write_bytes(b"weights that are still mapped")


def leave_an_export(folder):
    """One that is at work within the folder, or that was killed there."""
    (folder / ".export.partial").mkdir()
    (folder / ".export.lock").write_text("1\n")


SOUND = {
    "hard links": share,
    "a link to the folder": link_to,
    "read-only files": make_read_only,
    "the root of a volume": lambda folder: (folder / "lost+found").mkdir(),
    "removed packs on NFS": leave_removed_packs,
    "an export within it": leave_an_export,
    "a builder of packs": lambda folder: (folder / "packed" / ".building-0").mkdir(parents=True),
}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other links and modes")
@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_bundle_is_sound(toy_bundle_copy, kind):
    folder = toy_bundle_copy.rename(toy_bundle_copy.with_name("a b ä 模型"))
    SOUND[kind](folder)
    try:
        assert run("--check", folder, "--quiet") == (0, "", "")
    finally:
        folder.chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's mounts")
def test_a_sound_bundle_on_a_read_only_disk(toy_bundle_copy, repository):
    script = (
        'set -e\nmount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 77\nshift\nexec "$@"'
    )
    command = [sys.executable, "-m", "exporter.cli", "--check", toy_bundle_copy, "--quiet"]
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", toy_bundle_copy, *command],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip(f"this system does not let tests mount: {result.stderr.strip()}")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_bundle_without_a_stored_run(toy_bundle_copy):
    replace(read_manifest(toy_bundle_copy), probe=None).write(toy_bundle_copy)
    lines = []
    check_bundle(toy_bundle_copy, lines.append)
    assert lines[-1].endswith("--verify full, the default up to 2 GiB, or run does")


def test_logits_may_be_off_by_the_tolerance(toy_bundle_copy):
    def move(values):
        probe = values["probe"]
        probe["logits"] = [value + 0.7 * probe["tolerance"] for value in probe["logits"]]

    edit_manifest(toy_bundle_copy, move)
    check_bundle(toy_bundle_copy)
    edit_manifest(toy_bundle_copy, move)
    with pytest.raises(UnsoundBundleError, match="after 0 tokens of the stored run the best token"):
        check_bundle(toy_bundle_copy)


def test_another_token_that_is_clearly_better(toy_bundle_copy):
    edit_manifest(toy_bundle_copy, lambda values: values["probe"]["token_ids"].__setitem__(0, 5))
    with pytest.raises(UnsoundBundleError, match=r"the best token is \d+ and not 5, whose logit is"):
        check_bundle(toy_bundle_copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of the arguments --preset --check is required"),
        (("--check", "x", "--preset", "y"), "not allowed with argument"),
        (("--check", "x", "--force", "--precision", "int8"), "--quiet only, not with force, precision"),
    ],
)
def test_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_no_such_folder(tmp_path):
    code, out, err = run("--check", tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert err == f"opt-export: --check {tmp_path / 'nowhere'}: there is no such folder\n"
    assert run("--check", tmp_path)[0] == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("redirected", "code", "told"),
    [
        pytest.param(">&-", 0, "", marks=pytest.mark.slow),
        ("<&- >&- 2>&-", 0, ""),
        ("2> /dev/full", 0, ""),
        ("> /dev/full", 2, "opt-export: [Errno 28] No space left on device: 'standard output'\n"),
    ],
)
def test_where_nothing_can_be_told(toy_bundle, repository, redirected, code, told):
    """Which says nothing of the bundle: exit code 1 is for those that are not sound."""
    line = f"{sys.executable} -m exporter.cli --check {toy_bundle} {redirected}"
    result = subprocess.run(
        ["sh", "-c", line], cwd=repository, capture_output=True, text=True, check=False
    )
    assert result.returncode == code
    assert result.stderr.endswith(told)
    assert "Traceback" not in result.stderr


def test_it_needs_no_tensorflow(toy_bundle: Path, repository: Path):
    program = (
        "import sys\nfrom exporter.cli import main\n"
        "assert main(['--check', sys.argv[1], '--quiet']) == 0\n"
        "print([name for name in ('tensorflow', 'keras', 'tf2onnx') if name in sys.modules])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(toy_bundle)],
        cwd=repository,
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\n"


def test_it_leaves_the_bundle_as_it_is(toy_bundle, tmp_path):
    folder = make_cpu_bundle(Path(shutil.copytree(toy_bundle, tmp_path / "b")))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    check_bundle(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# === Graphs that do not run ===


def stored_run_ends(monkeypatch, statement):
    """Has the process of the stored run do something else at its start."""
    program = f"import os, sys, json; {statement}"
    run = subprocess.run

    def replaced(command, **options):
        assert "'-m', 'runtime.probe'" in command[-2]
        return run([sys.executable, "-c", program], **options)

    monkeypatch.setattr("exporter.check.subprocess.run", replaced)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("os.kill(os.getpid(), 11)", "the process was ended by SIGSEGV"),
        ("os.abort()", "the process was ended by SIGABRT"),
        ("sys.exit('RuntimeError: a kernel failed')", "RuntimeError: a kernel failed"),
        ("os._exit(3)", "no reason given"),
    ],
)
def test_a_stored_run_whose_process_ends(toy_bundle, monkeypatch, capsys, statement, told):
    stored_run_ends(monkeypatch, statement)
    assert main(["--check", str(toy_bundle)]) == 1
    assert f"does not run as it did at export: {told}" in capsys.readouterr().err

"""The installed commands in any folder: they import nothing from it, and say what is in their way."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.installed import BEFORE_COMMANDS, install, make_hostile, run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="scripts of POSIX")
GENERATE = ("opt-generate", "BUNDLE", "the", "--max-length", "4", "--seed", "1")
BENCH = ("opt-bench", "BUNDLE", "--prompt-tokens", "2", "--new-tokens", "2", "--trials", "1")
PATHS = {
    "none": {},
    "an empty entry": {"PYTHONPATH": ":/nowhere"},
    "relative entries": {"PYTHONPATH": "/nowhere:.:sub"},
    "the folder as user base": {"PYTHONUSERBASE": "sub", "HDF5_PLUGIN_PATH": "."},
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of installed commands, in a path with spaces and letters of other scripts."""
    return install(tmp_path_factory.mktemp("places") / "an environment, 环境")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, toy_bundle: Path) -> tuple[Path, Path]:
    """A bundle that is a hostile folder too, and its marker."""
    folder = tmp_path_factory.mktemp("stranger") / "bundle"
    shutil.copytree(toy_bundle, folder)
    (folder / "sub").mkdir()
    make_hostile(folder / "sub", spared=BEFORE_COMMANDS)
    return folder, make_hostile(folder, spared=BEFORE_COMMANDS)


def test_without_such_entries_nothing_at_all_is_imported(
    commands: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    """Not even what Python looks for at its start, or packages of our own names."""
    folder = shutil.copytree(toy_bundle, tmp_path / "bundle")
    marker = make_hostile(folder)
    done = run([commands / "opt-generate", ".", *GENERATE[2:]], folder)
    assert not marker.exists(), marker.read_text()
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", [GENERATE, BENCH], ids=["opt-generate", "opt-bench"])
@pytest.mark.parametrize("path", PATHS)
def test_nothing_of_the_working_folder_is_imported(
    commands: Path, hostile: tuple[Path, Path], command: tuple[str, ...], path: str
) -> None:
    folder, marker = hostile
    arguments = ["." if a == "BUNDLE" else a for a in command[1:]]
    done = run([commands / command[0], *arguments], folder, PATHS[path])
    assert not marker.exists(), marker.read_text()
    assert (done.returncode, done.stderr) == (0, "")


QUICK = ("relative entries", "the folder as user base")


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=() if p in QUICK else pytest.mark.slow) for p in PATHS]
)
def test_a_check_imports_nothing_of_the_working_folder(
    commands: Path, hostile: tuple[Path, Path], toy_bundle_copy: Path, path: str
) -> None:
    pytest.importorskip("onnx")
    folder, marker = hostile
    check = [commands / "opt-export", "--quiet", "--check"]
    done = run([*check, toy_bundle_copy], folder, PATHS[path])
    assert not marker.exists(), marker.read_text()
    assert (done.returncode, done.stderr) == (0, "")
    refused = run([*check, "."], folder, PATHS[path])
    assert not marker.exists(), marker.read_text()
    assert refused.returncode == 1
    assert "is no part of the bundle" in refused.stderr


def test_the_hostile_folder_is_one(hostile: tuple[Path, Path], repository: Path) -> None:
    """Without our doing, it is imported from."""
    folder, marker = hostile
    path = f":{repository}"
    done = run([sys.executable, "-P", "-c", "import runtime"], folder, {"PYTHONPATH": path})
    assert marker.exists(), done
    marker.unlink()


# === Where they are installed, and how they are called ===


@pytest.mark.parametrize("variables", [{"LC_ALL": "C"}, {"HOME": "/proc/1"}], ids=["C", "no home"])
def test_odd_places(
    commands: Path, toy_bundle: Path, tmp_path: Path, variables: dict[str, str]
) -> None:
    bundle = shutil.copytree(toy_bundle, tmp_path / "ein Bündel 模型")
    done = run([commands / "opt-generate", bundle, "the", "--max-length", "4"], tmp_path, variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the")


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can be another user"
)
def test_another_user_whose_home_is_closed(toy_bundle: Path) -> None:
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if shutil.which(as_nobody[0]) is None:
        pytest.skip("there is no setpriv")
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        commands = install(Path(place, "environment"))
        bundle = shutil.copytree(toy_bundle, Path(place, "bundle"))
        needed = f"'{commands}/python3' -c 'import numpy, tokenizers, onnxruntime'"
        if run([*as_nobody, "sh", "-c", needed], bundle).returncode:
            pytest.skip("another user may not read this environment")
        done = run([*as_nobody, commands / "opt-generate", ".", "the"], bundle, {"HOME": "/root"})
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("the")


# === Packages of the same names ===


@pytest.mark.parametrize(
    ("imported", "name", "in_the_way"),
    [
        ("runtime", "graphs.py", True),
        ("runtime", "graphs/__init__.py", True),
        ("runtime", "exporter.py", False),
        ("runtime", "bench/__init__.py", False),
        ("exporter", "graphs/__init__.py", True),
        ("exporter", "runtime.py", True),
        ("bench", "exporter/__init__.py", True),
        ("bench", "runtime.py", True),
        ("runtime", "graphs/data.txt", False),  # a folder without modules hides nothing
    ],
)
def test_an_application_with_packages_of_our_names(
    commands: Path, tmp_path: Path, imported: str, name: str, in_the_way: bool
) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    # A module `runtime` is found out when it has been imported; others are only looked for.
    file.write_text("" if name == "runtime.py" else "raise SystemExit(77)\n")
    script = tmp_path / "application.py"
    script.write_text(
        f"import sys\npath = [*sys.path]\nimport {imported}\nassert sys.path == path\nprint('done')\n"
    )
    done = run([commands / "python3", script], tmp_path.parent)
    if not in_the_way:
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
        return
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {file} is found where opt-onnx needs its own package")
    assert "rename it, or put " in last


@pytest.mark.parametrize("name", ["graphs.py", "runtime.py"])
def test_a_command_names_what_the_search_path_puts_in_its_way(
    commands: Path, toy_bundle: Path, tmp_path: Path, name: str
) -> None:
    """Where the user names the folder in full, it is looked into first."""
    (tmp_path / name).write_text("")
    done = run(
        [commands / "opt-export", "--check", toy_bundle], tmp_path, {"PYTHONPATH": str(tmp_path)}
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / name} is found where opt-onnx needs its own")


def test_a_module_that_is_loaded_already_is_named(commands: Path, tmp_path: Path) -> None:
    """As of an application whose main module is `runtime.py`, or that makes one up."""
    program = "import sys, types\nsys.modules['graphs'] = types.ModuleType('graphs')\nimport runtime\n"
    done = run([commands / "python3", "-c", program], tmp_path)
    assert "ImportError: <module 'graphs'> is found where opt-onnx needs its own package" in done.stderr


# === Whole exports ===


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_exports_import_nothing_of_a_preset(
    commands: Path, tmp_path: Path, repository: Path, path: str
) -> None:
    """With `--preset .` in a checkpoint's folder, and by `from_preset(".")` of a script elsewhere."""
    pytest.importorskip("tensorflow")
    folder = shutil.copytree(repository / "exporter/presets/opt_tiny_en", tmp_path / "preset")
    marker = make_hostile(folder, spared=BEFORE_COMMANDS if PATHS[path] else ())
    make_hostile(folder / "sub", spared=BEFORE_COMMANDS)
    (folder / "matplotlibrc").write_bytes(b"\xff\xfe")  # which ends whoever reads it
    output = tmp_path / "bundle"
    done = run([commands / "opt-export", "--preset", ".", "--output", output], folder, PATHS[path])
    assert not marker.exists(), marker.read_text()
    assert done.returncode == 0, done.stderr
    assert (output / "manifest.json").is_file()
    (folder / "matplotlibrc").unlink()
    (tmp_path / "elsewhere").mkdir()
    script = tmp_path / "elsewhere" / "script.py"
    script.write_text(
        "import os, sys\n"
        "from exporter import OPTCausalLM\n"
        f"os.chdir({str(folder)!r})\n"
        "sys.path.insert(0, '')\n"
        "OPTCausalLM.from_preset('.')\n"
    )
    for given in ({}, PATHS[path]):
        done = run([commands / "python3", script], folder if given == {} else tmp_path, given)
        assert not marker.exists(), marker.read_text()
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_built_in_preset_of_an_installation_by_links(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    commands = install(tmp_path / "linked", links=True)
    for arguments in (
        ["opt-export", "--preset", "opt_tiny_en"],
        ["opt-generate", "opt_tiny_en", "the"],
    ):
        done = run([commands / arguments[0], *arguments[1:]], tmp_path)
        assert done.returncode == 0, done.stderr

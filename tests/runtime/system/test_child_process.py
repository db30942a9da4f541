"""Python in a process of its own: what it imports, and from where."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from runtime.system import child_process
from runtime.system.child_process import (
    HOME,
    python_command,
    python_environment,
    safe_environment,
    search_path,
)
from tests.installed import make_hostile, run

TELL = "import json, sys; print(json.dumps([sys.path, sys.argv[1:]]))"
# Starts a child from a process that is started in many ways.
STARTS_CHILD = """
import subprocess, sys
from runtime.system.child_process import python_command, python_environment
program = "import graphs, json, numpy, runtime.sizes; print(graphs.__file__); print(json.__file__)"
command = python_command("-c", program)
sys.exit(subprocess.run(command, env=python_environment(), check=False).returncode)
"""


def ask(*arguments: str, folder: Path | None = None) -> tuple[list[str], list[str]]:
    """The search path and the arguments of a child."""
    done = subprocess.run(
        python_command("-c", TELL, *arguments),
        env=python_environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    path, given = json.loads(done.stdout)
    return path, given


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The marker of a working folder that is full of hostile modules."""
    marker = make_hostile(tmp_path / "stranger")
    make_hostile(tmp_path / "stranger" / "sub")
    monkeypatch.chdir(tmp_path / "stranger")
    return marker


@pytest.mark.parametrize(
    ("path", "entry"),
    [(None, ""), (None, None), ("", "sub"), (":", None), ("/nowhere::.", "."), ("./sub:..", "")],
)
def test_a_child_imports_nothing_of_the_working_folder(
    hostile: Path, monkeypatch: pytest.MonkeyPatch, path: str | None, entry: str | None
) -> None:
    """Whatever `PYTHONPATH` is, and whatever is first in `sys.path`; `None` is the folder in full."""
    monkeypatch.setattr(sys, "path", [os.getcwd() if entry is None else entry, *sys.path])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path)
    program = "import json, numpy, random, graphs.manifest, runtime.sizes; print('done')"
    done = subprocess.run(
        python_command("-c", program),
        env=python_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not hostile.exists(), hostile.read_text()
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_module_and_its_arguments() -> None:
    arguments = ["", "a b", "-h", "\N{SNOWMAN}", "x" * 1000]
    assert ask(*arguments)[1] == arguments
    done = subprocess.run(
        python_command("-m", "json.tool", "--json-lines"),
        env=python_environment(),
        input='{"a":1}',
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"a": 1}


def test_a_processes_search_path_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    first, last = str(tmp_path / "first: with a colon"), str(tmp_path / "zu\N{SNOWMAN}letzt")
    monkeypatch.setattr(sys, "path", [first, *sys.path, last, "relative", ""])
    assert ask()[0] == [entry for entry in sys.path if os.path.isabs(entry)]


def test_which_entries_are_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "sub").mkdir(parents=True)
    there.mkdir()
    (tmp_path / "link").symlink_to(here)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PWD", str(here))
    places = [
        str(here),
        str(here / "sub"),
        str(there),
        str(tmp_path / "link"),
        "",
        "sub",
        str(here) + "/.",
    ]
    monkeypatch.setattr(sys, "path", places)

    def kept(path: str, *untrusted: Path) -> list[str]:
        monkeypatch.setenv("PYTHONPATH", path)
        return search_path(untrusted)

    assert kept("") == [str(here / "sub"), str(there)]
    assert kept("sub:") == [str(there)]
    assert kept(str(here)) == [p for p in places if os.path.isabs(p)]  # named in full
    assert kept(f"{here}:.", there) == [p for p in places if os.path.isabs(p) and p != str(there)]
    assert kept(str(here), tmp_path) == []
    monkeypatch.chdir(there)  # and Python was started in the other
    assert kept("sub:") == [str(here / "sub")]


def test_python_itself_may_be_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one stands in the standard library, or where packages are installed."""
    for place in (os.path.dirname(os.__file__), *child_process.site.getsitepackages()):
        if os.path.isdir(place):
            monkeypatch.chdir(place)
            path, _ = ask()
            assert place in path


def test_a_working_folder_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "win32":
        pytest.skip("a working folder cannot be removed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir("gone")
    (tmp_path / "gone").rmdir()
    assert ask(folder=tmp_path)[0]
    assert search_path()


def test_this_projects_packages_come_from_where_they_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application that comes to have a `graphs` later, or another release that is installed."""
    for name in child_process.OWN_MODULES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('another')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    program = "import graphs.contract, runtime.sizes, exporter, bench; print(graphs.__file__)"
    done = subprocess.run(
        python_command("-c", program),
        env=python_environment({"PYTHONPATH": str(tmp_path)}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == HOME / "graphs" / "__init__.py"


def test_variables_are_cleaned_and_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/bin::.:/usr/bin:sub/bin:")
    monkeypatch.setenv("LD_LIBRARY_PATH", ":")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:/nowhere")
    monkeypatch.setenv("OTHER", ".")
    found = python_environment({"MORE": "1", "OTHER2": "x"}, untrusted=[tmp_path])
    assert found["PATH"] == "/bin:/usr/bin"
    assert "LD_LIBRARY_PATH" not in found
    assert found["PYTHONPATH"] == "/nowhere"
    assert (found["OTHER"], found["MORE"], found["PYTHONSAFEPATH"]) == (".", "1", "1")
    before = dict(os.environ)
    with safe_environment():
        assert os.environ["PATH"] == "/bin:/usr/bin"
        assert "LD_LIBRARY_PATH" not in os.environ
    assert dict(os.environ) == before


def test_a_process_that_multiprocessing_starts(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":")
    context = multiprocessing.get_context("spawn")
    with safe_environment(), ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(abs, -3).result() == 3
    assert not hostile.exists(), hostile.read_text()


# === How the parent was started ===


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a child imports, with a module in it that should hide nothing."""
    folder = tmp_path / "checkout"
    for name in ("graphs", "runtime"):
        shutil.copytree(HOME / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "starts_child.py").write_text(STARTS_CHILD)
    return folder


def check_children(done: subprocess.CompletedProcess[str], home: Path) -> None:
    assert done.returncode == 0, done.stderr
    graphs, standard = done.stdout.splitlines()
    assert Path(graphs) == home / "graphs" / "__init__.py"
    assert Path(standard).is_relative_to(os.path.dirname(os.__file__))


@pytest.mark.parametrize("options", [["-m", "starts_child"], ["-c", STARTS_CHILD]], ids=["-m", "-c"])
def test_packages_that_are_in_the_working_folder_only(checkout: Path, options: list[str]) -> None:
    done = run([sys.executable, *options], checkout)
    check_children(done, checkout)


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        (["-P"], {}),
        ([], {"PYTHONSAFEPATH": "1"}),
        (["-s"], {}),
        (["-X", "dev", "-W", "ignore"], {}),
    ],
    ids=["safe path", "its variable", "no user site", "other options"],
)
def test_packages_that_pythonpath_names(
    checkout: Path, tmp_path: Path, options: list[str], variables: dict[str, str]
) -> None:
    command = [sys.executable, *options, "-c", STARTS_CHILD]
    check_children(run(command, tmp_path, {"PYTHONPATH": str(checkout), **variables}), checkout)


def test_an_isolated_parent(checkout: Path, tmp_path: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(checkout)!r})\n{STARTS_CHILD}"
    hostile = make_hostile(tmp_path / "named")
    done = run([sys.executable, "-I", "-c", program], tmp_path, {"PYTHONPATH": str(tmp_path / "named")})
    assert not hostile.exists()
    check_children(done, checkout)


def test_packages_in_a_zip_file(checkout: Path, tmp_path: Path) -> None:
    archive = tmp_path / "packages.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in checkout.rglob("*.py"):
            file.write(path, path.relative_to(checkout))
    done = run([sys.executable, "-c", STARTS_CHILD], tmp_path, {"PYTHONPATH": str(archive)})
    check_children(done, archive)


def test_packages_of_the_users_own_site(checkout: Path, tmp_path: Path) -> None:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    base = tmp_path / "base"
    program = "import site; print(site.getusersitepackages(), site.ENABLE_USER_SITE)"
    place, enabled = run(
        [sys.executable, "-c", program], tmp_path, {"PYTHONUSERBASE": str(base)}
    ).stdout.split()
    assert version in place or sys.platform != "linux"
    if enabled != "True":
        pytest.skip("this environment has no user site")
    shutil.copytree(checkout, place)
    done = run([sys.executable, "-c", STARTS_CHILD], tmp_path, {"PYTHONUSERBASE": str(base)})
    check_children(done, Path(place))


# === Which interpreter ===


def test_the_interpreter_of_a_python_within_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    assert python_command("-c", "")[0] == sys.executable
    monkeypatch.setattr(sys, "exec_prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/usr/sbin/server")
    assert python_command("-c", "")[0] == "/usr/sbin/server"  # nothing better is known
    (tmp_path / "bin").mkdir()
    for name in ("python3", version):
        (tmp_path / "bin" / name).touch()
        assert python_command("-c", "")[0] == str(tmp_path / "bin" / name)
    monkeypatch.setattr(sys, "executable", "")
    assert python_command("-c", "")[0] == str(tmp_path / "bin" / version)
    shutil.rmtree(tmp_path / "bin")
    with pytest.raises(
        RuntimeError, match=r"there is no Python interpreter in .*; set sys\.executable"
    ):
        python_command("-c", "")


def test_another_environments_interpreter_keeps_its_own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, "/of this process alone"])
    command = python_command("-c", TELL, python=os.path.realpath(sys.executable))
    assert command[0] != sys.executable or os.path.realpath(sys.executable) == sys.executable
    done = subprocess.run(command, env=python_environment(), capture_output=True, text=True, check=True)
    same = command[0] == sys.executable
    assert ("/of this process alone" in json.loads(done.stdout)[0]) is same

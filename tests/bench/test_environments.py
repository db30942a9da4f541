"""Environments of the compared systems: which commands make them, and which interpreter is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import environments
from bench.environments import (
    ENVIRONMENTS,
    MARKER,
    Environment,
    environment_python,
    find_python,
    is_whole,
    main,
    make_environment,
)
from bench.workers.systems import SYSTEMS

TOY = Environment("toy", "json", ("toy==1.0",), unwanted=("ballast",))


@pytest.fixture
def calls(monkeypatch):
    """Commands that were run; `python -m venv` makes an empty folder."""
    commands = []

    def run(command, **options):
        commands.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True, exist_ok=True)
        failed = "failing==1.0" in command
        return subprocess.CompletedProcess(command, failed, "", "ERROR: no such version\n" * failed)

    def command(*arguments, python=None):
        return [python or sys.executable, *arguments]

    monkeypatch.setattr(environments.subprocess, "run", run)
    monkeypatch.setattr(environments, "python_command", command)
    return commands


# === Making ===


def test_commands_that_make_an_environment(tmp_path, calls):
    assert make_environment(TOY, tmp_path)
    path = tmp_path / "toy"
    python = str(environment_python(path))
    assert calls == [
        [sys.executable, "-m", "venv", "--clear", str(path)],
        [python, "-m", "pip", "install", "--quiet", "toy==1.0"],
        [python, "-m", "pip", "uninstall", "-y", "--quiet", "ballast"],
        [python, "-c", "import json"],
    ]
    assert (path / MARKER).read_text() == "toy==1.0\nwithout ballast\n"


def test_an_environment_that_is_up_to_date_stays(tmp_path, calls):
    make_environment(TOY, tmp_path)
    calls.clear()
    assert not make_environment(TOY, tmp_path)
    assert calls == []
    newer = Environment("toy", "json", ("toy==1.1",))
    assert not is_whole(newer, tmp_path)
    assert make_environment(newer, tmp_path)


def test_failing_installation_tells_what_pip_said(tmp_path, calls):
    failing = Environment("toy", "json", ("failing==1.0",))
    message = "making the environment toy failed:\nERROR: no such version"
    with pytest.raises(RuntimeError, match=message):
        make_environment(failing, tmp_path)
    assert not is_whole(failing, tmp_path)


def test_command(tmp_path, calls, capsys):
    arguments = ["--only", "ctranslate2,openvino", "--folder", str(tmp_path)]
    assert main(arguments) == 0
    ctranslate2, openvino = tmp_path / "ctranslate2", tmp_path / "openvino"
    assert capsys.readouterr().out == f"{ctranslate2}: made\n{openvino}: made\n"
    assert main(arguments) == 0
    assert capsys.readouterr().out.count(": is up to date\n") == 2


def test_unknown_environment(capsys):
    assert main(["--only", "ctranslate2,gpt"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("environments: --only: there is no 'gpt'; choose among keras-hub, trans")


def test_every_system_has_an_environment_of_pinned_packages():
    assert {system.environment for system in SYSTEMS.values()} == set(ENVIRONMENTS)
    for environment in ENVIRONMENTS.values():
        assert all("==" in requirement for requirement in environment.requirements)


# === Finding ===


def test_interpreter_of_an_environment(tmp_path, calls):
    make_environment(ENVIRONMENTS["openvino"], tmp_path)
    python = find_python("openvino", tmp_path)
    assert python == str(tmp_path / "openvino" / "bin" / "python")


def test_running_interpreter_where_it_has_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENTS, "toy", TOY)
    assert find_python("toy", tmp_path) == sys.executable
    assert find_python(None, tmp_path) == sys.executable


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.inner"])
def test_neither(tmp_path, monkeypatch, module):
    monkeypatch.setitem(ENVIRONMENTS, "toy", Environment("toy", module, ("toy==1.0",)))
    with pytest.raises(ValueError, match="is no environment with toy==") as raised:
        find_python("toy", tmp_path)
    command = f"make it with: python -m bench.environments --only toy --folder {tmp_path}"
    assert str(raised.value).endswith(command)
    # One that was not made to the end is none.
    (tmp_path / "toy").mkdir()
    with pytest.raises(ValueError, match="is no environment with toy=="):
        find_python("toy", tmp_path)

"""Commands with standard streams that are closed, full, or know few characters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime import Generator
from tests.runtime.test_cli import greedy_text

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a shell of POSIX redirects")
COMMAND = f"{sys.executable} -m runtime.cli"
ASCII = {"PYTHONIOENCODING": "ascii"}
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def shell(repository: Path) -> Any:
    """Runs a line of shell: status, standard output, standard error."""

    def shell(line: str, environment: dict[str, str] | None = None) -> tuple[int, bytes, bytes]:
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=repository,
            env={**os.environ, **(environment or {"PYTHONUTF8": "1"})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=120,
        )
        return done.returncode, done.stdout, done.stderr

    return shell


@pytest.mark.parametrize(
    "closed",
    [
        "<&-",
        *(pytest.param(c, marks=pytest.mark.slow) for c in (">&-", "2>&-", ">&- 2>&-")),
        "<&- >&- 2>&-",
    ],
)
def test_closed_streams(
    shell: Any, toy_bundle: Path, generator: Generator, tmp_path: Path, closed: str
) -> None:
    text = "" if ">&-" in closed.replace("2>&-", "") else greedy_text(generator, "the") + "\n"
    line = f"{COMMAND} {toy_bundle} the --sampler greedy --threads 1"
    assert shell(f"{line} {closed}") == (0, text.encode(), b"")
    # Files that are opened get the numbers of none of them: what is printed never gets into one.
    (tmp_path / "in").write_text('{"prompt": "the"}\n{"prompt": 5}\n')
    job = f"{COMMAND} {toy_bundle} --sampler greedy --threads 1"
    status, out, _ = shell(f"{job} --input {tmp_path}/in --output {tmp_path}/out {closed}")
    assert (status, out) == (1, b"")
    found = [json.loads(line) for line in (tmp_path / "out").read_text("utf-8").splitlines()]
    assert [set(record) >= {"text"} or record["error"][:6] for record in found] == [True, "line 2"]
    assert (tmp_path / "in").read_text() == '{"prompt": "the"}\n{"prompt": 5}\n'


@pytest.mark.parametrize(
    "closed",
    [*(pytest.param(c, marks=pytest.mark.slow) for c in ("<&-", ">&-", "2>&-")), "<&- >&- 2>&-"],
)
def test_errors_with_closed_streams(shell: Any, tmp_path: Path, closed: str) -> None:
    told = b"" if "2>&-" in closed else b"is no bundle"
    status, out, error = shell(f"{COMMAND} {tmp_path} the {closed}")
    assert (status, out) == (2, b"")
    assert told in error
    assert error.count(b"\n") == (1 if told else 0)
    status, _, error = shell(f"{COMMAND} --nope {closed}")
    assert (status, b"Traceback" in error) == (2, False)
    assert shell(f"{COMMAND} --help {closed}")[::2] == (0, b"")


def test_no_standard_input_is_no_prompt(shell: Any, toy_bundle: Path) -> None:
    status, _, error = shell(f"{COMMAND} {toy_bundle} <&-")
    assert status == 2
    assert error.startswith(b"opt-generate: no prompt: give one after BUNDLE")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_full_disks(shell: Any, toy_bundle: Path, tmp_path: Path) -> None:
    line = f"{COMMAND} {toy_bundle} the --threads 1"
    full = b"opt-generate: [Errno 28] No space left on device: 'standard output'\n"
    assert shell(f"{line} > /dev/full") == (2, b"", full)
    (tmp_path / "in").write_text('{"prompt": "the"}\n')
    job = f"{COMMAND} {toy_bundle} --threads 1 --input {tmp_path}/in"
    assert shell(f"{job} > /dev/full") == (2, b"", full)
    assert shell(f"{COMMAND} --help > /dev/full") == (2, b"", full)
    assert shell(f"{line} > /dev/null 2> /dev/full")[0] == 0
    assert shell(f"{COMMAND} {tmp_path} the 2> /dev/full")[0] == 2
    assert shell(f"{COMMAND} --nope 2> /dev/full")[0] == 2
    assert shell(f"{line} > /dev/full 2> /dev/full")[0] == 2


def test_a_reader_that_leaves(shell: Any, toy_bundle: Path) -> None:
    for arguments in (f"{toy_bundle} the a --threads 1", "--help"):
        line = f"{{ {COMMAND} {arguments}; echo $? >&2; }} | head -c 0"
        assert shell(line)[2] == b"0\n"


@pytest.mark.parametrize("environment", [ASCII, C_LOCALE, {"PYTHONIOENCODING": "cp1252"}])
def test_characters_that_the_terminal_does_not_know(
    shell: Any, toy_bundle: Path, generator: Generator, environment: dict[str, str]
) -> None:
    encoding = "cp1252" if "cp1252" in environment.values() else "ascii"
    line = f"{COMMAND} {toy_bundle} 'Zoë 😀' --sampler greedy --threads 1"
    status, out, error = shell(line, environment)
    text = greedy_text(generator, "Zoë 😀") + "\n"
    assert (status, error) == (0, b"")
    assert out == text.encode(encoding, "backslashreplace")
    # JSON is the same for every reader.
    job = f"""printf '{{"prompt": "Zoë 😀"}}' | {COMMAND} {toy_bundle} --threads 1 --input -"""
    status, out, error = shell(job, environment)
    assert (status, error) == (0, b"")
    assert json.loads(out.decode("utf-8"))["prompt"] == "Zoë 😀"


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are any bytes on Linux")
@pytest.mark.parametrize(
    ("name", "environment"),
    [(b"caf\xe9 \xff", {"PYTHONUTF8": "1"}), ("Zoë 模型".encode(), C_LOCALE)],
    ids=["Latin-1", "UTF-8 in an ASCII locale"],
)
def test_a_folder_with_any_name(
    shell: Any,
    toy_bundle: Path,
    generator: Generator,
    tmp_path: Path,
    name: bytes,
    environment: dict[str, str],
) -> None:
    folder = os.fsencode(tmp_path) + b"/" + name
    os.mkdir(folder)
    quoted = "'" + os.fsdecode(folder) + "'"
    shell(f"cp -r {toy_bundle} {quoted}/bundle")
    line = f"{COMMAND} {quoted}/bundle the --sampler greedy --threads 1"
    text = greedy_text(generator, "the") + "\n"
    status, out, error = shell(line, environment)
    encoding = "utf-8" if environment is not C_LOCALE else "ascii"
    assert (status, out, error) == (0, text.encode(encoding, "backslashreplace"), b"")
    status, _, error = shell(f"{COMMAND} {quoted}/none the", environment)
    assert (status, error.count(b"\n")) == (2, 1)
    assert b"none is no bundle: it does not exist" in error
    (tmp_path / "in").write_text('{"prompt": "the"}\n')
    job = f"{COMMAND} {quoted}/bundle --sampler greedy --threads 1 --input {tmp_path}/in"
    assert shell(f"{job} --output {quoted}/out", environment) == (0, b"", b"")
    assert json.loads(Path(os.fsdecode(folder), "out").read_bytes())["text"] + "\n" == text

"""A few kills of real exports; the long run is `python -m tests.faults.kills --count 200`."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("tensorflow", reason="the exporter is not installed")


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc before it forks")
@pytest.mark.slow
def test_three_kills(repository):
    command = [sys.executable, "-m", "tests.faults.kills", "--count", "3", "--seed", "1"]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("3 kills, 0 problems\n")

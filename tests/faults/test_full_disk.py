"""A few disks that are too small; the long run is `python -m tests.faults.full_disk`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.faults.full_disk import SKIPPED

pytest.importorskip("tensorflow", reason="the exporter is not installed")


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.slow
def test_two_sizes(repository):
    command = [sys.executable, "-m", "tests.faults.full_disk", "--steps", "2"]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if result.returncode == SKIPPED:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("6 exports, 0 problems\n")

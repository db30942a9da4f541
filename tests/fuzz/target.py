"""One process of libFuzzer over a harness; started by `tests.fuzz.__main__`.

python -m tests.fuzz.target NAME [LIBFUZZER_OPTION ...] CORPUS
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path

import atheris

INSTRUMENTED = ["exporter", "graphs", "runtime", "h5py", "json", "pickletools", "zipfile"]
MEMORY_DISK = Path("/dev/shm")  # where inputs are files, thousands a second

with atheris.instrument_imports(include=INSTRUMENTED):
    from tests.fuzz.harnesses import HARNESSES, MAX_INPUT, run_once


def main() -> None:
    harness = HARNESSES[sys.argv.pop(1)]
    place = MEMORY_DISK if os.access(MEMORY_DISK, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)

        def test_one_input(data: bytes) -> None:
            run_once(harness, data, folder)

        def mutate(data: bytes, most: int, seed: int) -> bytes:
            source = random.Random(seed)
            if source.random() < 0.3:
                return atheris.Mutate(data, most)
            return harness.mutate(data, source)[:most]

        atheris.Setup([*sys.argv, f"-max_len={MAX_INPUT}"], test_one_input, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

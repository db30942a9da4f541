"""A worker without a model, whose faults its job's options name."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bench.workers.protocol import Conversion, Job, Model, RefusalError, serve


def load(job: Job) -> Model:
    """Generates the sum of a prompt, plus one for each token."""
    print("a library greets on standard output")
    fault = job.options.get("fault")
    if fault == "load":
        raise OSError(f"cannot read {job.checkpoint} with {job.threads} threads")

    def generate(token_ids: list[list[int]], new_tokens: int) -> list[list[int]]:
        print("a library chats on standard output")
        if fault == "generate":
            raise ValueError("out of room")
        if fault == "quiet":
            sys.exit(3)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "refuse" and len(token_ids) > 1:
            raise RefusalError("one row at a time")
        if fault == "short":
            new_tokens -= 1
        time.sleep(job.options.get("sleep", 0))
        return [[sum(row) + i for i in range(new_tokens)] for row in token_ids]

    def logits(token_ids: list[list[int]], places: int) -> Any:
        """One-hot of each token in a vocabulary of eight, times a factor."""
        import numpy as np

        places -= fault == "few places"
        return np.eye(8, dtype=np.float32)[token_ids][:, -places:] * job.options["logits"]

    return Model(generate, logits if "logits" in job.options else None)


def convert(conversion: Conversion) -> None:
    """Copies the names of the source's files and the options."""
    print("a library chats")
    if conversion.options.get("fault") == "convert":
        raise OSError(f"cannot convert {conversion.source}")
    names = sorted(path.name for path in Path(conversion.source).iterdir())
    text = f"{names} {conversion.options}"
    Path(conversion.target, "converted.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    serve(load, ("numpy", "no-such-package"), convert)

"""A worker without a model, whose faults its job's options name."""

from __future__ import annotations

import os
import signal
import sys
import time

from bench.workers.protocol import Generate, Job, serve


def load(job: Job) -> Generate:
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
        if fault == "short":
            new_tokens -= 1
        time.sleep(job.options.get("sleep", 0))
        return [[sum(row) + i for i in range(new_tokens)] for row in token_ids]

    return generate


if __name__ == "__main__":
    serve(load, ("numpy", "no-such-package"))

"""The parent's side of the conversation: starts a worker and asks it."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bench.workers.protocol import Conversion, Job, RefusalError
from bench.workers.systems import System
from runtime.system.child_process import python_command, python_environment

STDERR_LINES = 20  # of a dead worker, in the error
PATIENCE_SECONDS = 10  # for a worker to end when asked to
# What the system before has left spinning or writing back is done by then.
SETTLE_SECONDS = 0.25


class WorkerError(RuntimeError):
    """A worker died or answered with something else than what was asked for."""


@dataclass(frozen=True)
class Generation:
    """A worker's answer: seconds for all tokens, and the tokens, int64 [rows, new tokens]."""

    seconds: float
    token_ids: NDArray[np.int64]


class Worker:
    """A system in a process of its own; a context manager that ends it.

    Args:
        system: which.
        checkpoint: folder to load.
        threads: CPU threads to compute with.
        python: interpreter of the system's environment; the running one by default.

    Attributes:
        load_seconds: from a running Python to a loaded model, imports included.
        gives_logits: whether `logits` can be asked for.
        peak_memory_bytes: of the process so far; `None` where it cannot be told.

    Raises:
        WorkerError: if it does not get ready, with what it wrote to standard error.
    """

    def __init__(
        self, system: System, checkpoint: Path, threads: int, python: str = sys.executable
    ) -> None:
        self.system, self.name = system, system.name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the worker
        job = Job(str(checkpoint), threads, system.options)
        self._process = subprocess.Popen(
            python_command("-m", system.module, "serve", json.dumps(asdict(job)), python=python),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=worker_environment(threads),
            text=True,
            encoding="utf-8",
        )
        self.peak_memory_bytes: int | None = None
        try:
            ready = self._receive("loading")
            self.load_seconds = float(ready["load_seconds"])
            self.gives_logits: bool = ready["gives_logits"]
        except BaseException:
            self.close()
            raise

    @functools.cached_property
    def versions(self) -> dict[str, str]:
        """Versions of the system's packages; asked for once."""
        versions: dict[str, str] = self._ask("telling versions", {"ask": "versions"})["versions"]
        return versions

    def generate(
        self, prompts: NDArray[np.int64], new_tokens: int, *, settle: bool = True
    ) -> Generation:
        """Has the worker generate greedily.

        Args:
            prompts: int64 [rows, length].
            new_tokens: of each row.
            settle: whether to wait first until other systems have come to rest.

        Raises:
            RefusalError: if its system cannot do that, with the reason.
            WorkerError: if it dies or does not give `new_tokens` tokens for each row.
        """
        if settle:
            time.sleep(SETTLE_SECONDS)
        doing = f"generating {new_tokens} tokens after {prompts.shape[1]}"
        answer = self._ask(
            doing, {"ask": "generate", "token_ids": prompts.tolist(), "new_tokens": new_tokens}
        )
        if "refused" in answer:
            raise RefusalError(answer["refused"])
        token_ids = np.array(answer["token_ids"], np.int64)
        if token_ids.shape != (len(prompts), new_tokens):
            raise WorkerError(
                f"{self.name} gave tokens of shape {token_ids.shape} when {doing} for "
                f"{len(prompts)} rows"
            )
        return Generation(float(answer["seconds"]), token_ids)

    def logits(self, token_ids: NDArray[np.int64], places: int) -> NDArray[np.float32]:
        """What the model says after each of the last `places` tokens of each row.

        Args:
            token_ids: int64 [rows, length].
            places: at most the length.

        Returns:
            float32 [rows, places, vocabulary].

        Raises:
            WorkerError: if it dies or gives another number of rows or places.
        """
        doing = f"telling logits after {token_ids.shape[1]} tokens"
        answer = self._ask(doing, {"ask": "logits", "token_ids": token_ids.tolist(), "places": places})
        shape = tuple(answer["shape"])
        if shape[:2] != (len(token_ids), places):
            raise WorkerError(f"{self.name} gave logits of shape {shape} when {doing}")
        return np.frombuffer(base64.b64decode(answer["float32"]), "<f4").reshape(shape)

    def serve(self, prompts: list[list[int]], new_tokens: int, in_flight: int) -> list[dict[str, Any]]:
        """Has the worker serve requests, so many at a time; see `bench.workers.closed_loop`.

        Raises:
            WorkerError: if it dies or does not give `new_tokens` tokens for each prompt.
        """
        time.sleep(SETTLE_SECONDS)
        doing = f"serving {len(prompts)} requests, {in_flight} at a time"
        values = {"prompts": prompts, "new_tokens": new_tokens, "in_flight": in_flight}
        requests: list[dict[str, Any]] = self._ask(doing, {"ask": "serve", **values})["requests"]
        counts = [len(request["token_ids"]) for request in requests]
        if counts != [new_tokens] * len(prompts):
            raise WorkerError(f"{self.name} gave {counts} tokens when {doing}")
        return requests

    def _ask(self, doing: str, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death(doing) from None
        return self._receive(doing)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _receive(self, doing: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._death(doing)
        answer: dict[str, Any] = json.loads(line)
        self.peak_memory_bytes = answer["peak_memory_bytes"]
        return answer

    def _death(self, doing: str) -> WorkerError:
        code = self._process.wait()
        self._errors.seek(0)
        told = _last_lines(self._errors.read().decode(errors="replace"))
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return WorkerError(f"{self.name} {how} when {doing}:\n{told}")


def convert(system: System, conversion: Conversion, python: str = sys.executable) -> None:
    """Has a system's worker convert a checkpoint, in a process of its own.

    Raises:
        WorkerError: if it fails, with what it wrote to standard error.
    """
    result = subprocess.run(
        python_command("-m", system.module, "convert", json.dumps(asdict(conversion)), python=python),
        capture_output=True,
        text=True,
        errors="replace",
        env=worker_environment(os.cpu_count() or 1),
        check=False,
    )
    if result.returncode:
        told = _last_lines(result.stderr)
        raise WorkerError(f"{system.name} failed to convert {conversion.source}:\n{told}")


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-STDERR_LINES:]) or "nothing on standard error"


def worker_environment(threads: int) -> dict[str, str]:
    """Environment variables of a worker."""
    return python_environment(
        {
            "OMP_NUM_THREADS": str(threads),
            "CUDA_VISIBLE_DEVICES": "-1",  # all systems on the CPU
            "HF_HUB_OFFLINE": "1",
        }
    )

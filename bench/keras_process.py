"""A Keras system in a process of its own, asked in turn with another: for `bench.training` and
`bench.keras_generate`, which measure more than the generations that `bench.workers` ask for.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from runtime.system.child_process import safe_environment

# What the system before has left spinning is done by then.
SETTLE_SECONDS = 0.25

# From a request's arguments to its answer; both are pickled.
Handler = Callable[..., Any]


class KerasProcess:
    """A context manager over a fresh process that answers requests one at a time.

    Args:
        load: called in the process with `args`, gives the handler of its requests. It imports what it
            needs itself, so that the parent need not have it.
        args: its arguments.
        threads: TensorFlow's threads within and between operations.

    Raises:
        RuntimeError: if the process ends without an answer; it has told why on standard error.
    """

    def __init__(self, load: Callable[..., Handler], args: tuple[Any, ...], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, load, args, threads), daemon=True)
        with safe_environment():
            self._process.start()
        other.close()
        self._receive()

    def ask(self, *request: Any) -> Any:
        """The handler's answer, after a pause in which the other systems come to rest."""
        time.sleep(SETTLE_SECONDS)
        self._connection.send(request)
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(
                f"a worker ended with exit code {self._process.exitcode}; its error is above"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()
        self._process.join()


def _serve(connection: Any, load: Callable[..., Handler], args: tuple[Any, ...], threads: int) -> None:
    os.environ.update(KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="-1", HF_HUB_OFFLINE="1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    handler = load(*args)
    connection.send(None)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        connection.send(handler(*request))

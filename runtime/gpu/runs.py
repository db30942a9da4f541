"""Runs of ONNX Runtime sessions on a device: one at a time, and recorded from few threads."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

from runtime.gpu.captures import CAPTURES
from runtime.onnx_runtime import ort

SKIP_GRAPHS = "-1"  # ONNX Runtime's number for a run that is neither recorded nor replayed


class DeviceRuns:
    """Runs sessions of one model.

    Where graphs are recorded, ONNX Runtime makes each thread that runs a session handles and recordings
    of its own, and keeps them until the session ends. So two threads run all: the one that made this,
    and one for all others.

    Args:
        cuda_graphs: whether runs may be recorded as CUDA graphs and replayed.

    Attributes:
        arena_bytes: about what ONNX Runtime has taken for runs, and keeps; counted by the decoder.
    """

    def __init__(self, *, cuda_graphs: bool) -> None:
        self.arena_bytes = 0
        self._cuda_graphs = cuda_graphs
        self._home = threading.current_thread()
        self._others = concurrent.futures.ThreadPoolExecutor(1, "opt-onnx-runs")  # starts when used
        self._recorded: set[tuple[bool, int]] = set()
        self._plain = ort.RunOptions()
        self._plain.add_run_config_entry("gpu_graph_id", SKIP_GRAPHS)

    def options(self, graph_id: int) -> Any:
        """The options of runs that are recorded under a number, made once."""
        if not self._cuda_graphs:
            return self._plain
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph_id))
        return options

    def run(self, session: Any, binding: Any) -> None:
        """One run that is not recorded; done when it returns."""

        def run() -> None:
            with CAPTURES:
                session.run_with_iobinding(binding, self._plain)

        self._on_thread(run)

    def run_recorded(self, session: Any, binding: Any, options: Any, graph_id: int) -> None:
        """One run with `options(graph_id)`, always on the same buffers; done when it returns.

        With CUDA graphs a thread's first one records, and later ones replay.
        """
        if not self._cuda_graphs:
            self.run(session, binding)
            return

        def run() -> None:
            place = threading.current_thread() is self._home, graph_id
            with CAPTURES if place in self._recorded else CAPTURES.recording():
                session.run_with_iobinding(binding, options)
            self._recorded.add(place)

        self._on_thread(run)

    def _on_thread(self, run: Callable[[], object]) -> None:
        if not self._cuda_graphs or threading.current_thread() is self._home:
            run()
            return
        future = self._others.submit(run)
        try:
            future.result()
        except BaseException:
            concurrent.futures.wait([future])  # Ctrl-C's error: the buffers are in use until it ends
            raise

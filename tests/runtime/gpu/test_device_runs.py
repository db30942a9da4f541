"""Runs on a device: by two threads at most, and no use of CUDA while a graph is recorded."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from runtime.gpu.captures import CAPTURES, CaptureGate
from runtime.gpu.runs import DeviceRuns

WAIT_SECONDS = 30


class Session:
    """Notes who runs it, with what, and whether other threads may use CUDA meanwhile."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.graphs: list[str] = []
        self.alone: list[bool] = []
        self.error: Exception | None = None

    def run_with_iobinding(self, binding: str, options: Any) -> None:
        self.threads.append(threading.current_thread().name)
        self.graphs.append(options.get_run_config_entry("gpu_graph_id"))
        self.alone.append(not can_enter(CAPTURES))
        if self.error is not None:
            raise self.error


def can_enter(gate: CaptureGate) -> bool:
    """Whether another thread comes through now."""
    through = threading.Event()

    def enter() -> None:
        with gate:
            through.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    return through.wait(0.2)


def in_thread(call: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(WAIT_SECONDS)


def test_the_first_run_of_a_graph_is_recorded_alone() -> None:
    runs, session = DeviceRuns(cuda_graphs=True), Session()
    for graph in (1, 1, 2, 1, 2):
        runs.run_recorded(session, "binding", runs.options(graph), graph)
    runs.run(session, "binding")
    assert session.graphs == ["1", "1", "2", "1", "2", "-1"]
    assert session.alone == [True, False, True, False, False, False]
    assert set(session.threads) == {threading.current_thread().name}


def test_all_other_threads_share_one() -> None:
    runs, session = DeviceRuns(cuda_graphs=True), Session()
    options = runs.options(1)
    for _ in range(3):
        in_thread(lambda: runs.run_recorded(session, "binding", options, 1))
        in_thread(lambda: runs.run(session, "binding"))
    runs.run_recorded(session, "binding", options, 1)
    assert session.alone == [True, False, False, False, False, False, True]  # once by each
    assert set(session.threads[:-1]) == {"opt-onnx-runs_0"}
    assert session.threads[-1] == threading.current_thread().name


def test_without_graphs_every_thread_runs_by_itself() -> None:
    runs, session = DeviceRuns(cuda_graphs=False), Session()
    runs.run_recorded(session, "binding", runs.options(1), 1)
    in_thread(lambda: runs.run_recorded(session, "binding", runs.options(1), 1))
    assert session.graphs == ["-1", "-1"]
    assert session.alone == [False, False]
    assert len(set(session.threads)) == 2
    assert "opt-onnx-runs_0" not in session.threads


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_errors_are_the_callers_and_are_not_a_recording(cuda_graphs: bool) -> None:
    runs, session = DeviceRuns(cuda_graphs=cuda_graphs), Session()
    options = runs.options(1)
    session.error = RuntimeError("no kernel")
    for call in (lambda run: run(), in_thread):
        with pytest.raises(RuntimeError, match="no kernel"):
            call(lambda: runs.run_recorded(session, "binding", options, 1))
    session.error = None
    runs.run_recorded(session, "binding", options, 1)
    assert session.alone == [cuda_graphs] * 3
    assert can_enter(CAPTURES)


def test_an_interrupted_caller_waits_for_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its buffers are freed when it leaves."""
    runs = DeviceRuns(cuda_graphs=True)
    begun, go_on, left = threading.Event(), threading.Event(), threading.Event()

    class Slow(Session):
        def run_with_iobinding(self, binding: str, options: Any) -> None:
            begun.set()
            assert go_on.wait(WAIT_SECONDS)

    submit = runs._others.submit

    def interrupted(call: Any) -> Any:
        future = submit(call)
        result = future.result

        def wait(timeout: float | None = None) -> Any:
            assert begun.wait(WAIT_SECONDS)
            monkeypatch.setattr(future, "result", result)
            raise KeyboardInterrupt

        monkeypatch.setattr(future, "result", wait)
        return future

    monkeypatch.setattr(runs._others, "submit", interrupted)

    def call() -> None:
        with pytest.raises(KeyboardInterrupt):
            runs.run(Slow(), "binding")
        left.set()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert begun.wait(WAIT_SECONDS)
    assert not left.wait(0.2)
    go_on.set()
    assert left.wait(WAIT_SECONDS)
    thread.join()


# === The gate ===


def test_uses_may_be_nested_also_in_a_recording() -> None:
    gate = CaptureGate()
    with gate, gate:
        assert can_enter(gate)
    with gate.recording():
        assert not can_enter(gate)
        with gate:
            assert not can_enter(gate)
    assert can_enter(gate)


def test_a_recording_waits_for_those_inside_and_they_may_go_on() -> None:
    gate, recorded = CaptureGate(), threading.Event()

    def record() -> None:
        with gate.recording():
            recorded.set()

    with gate:
        thread = threading.Thread(target=record, daemon=True)
        thread.start()
        assert not recorded.wait(0.1)
        with gate:  # the garbage collector's, while the recording waits
            pass
        assert not recorded.wait(0.1)
    assert recorded.wait(WAIT_SECONDS)
    thread.join()


def test_recordings_take_turns() -> None:
    gate, inside, most = CaptureGate(), [0], [0]

    def record(_: int) -> None:
        for _ in range(20):
            with gate.recording():
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)  # for the others to come in, if they can
                inside[0] -= 1
            with gate:
                assert gate._recorder is None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(record, range(8)))
    assert most == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_waits_for_no_recording() -> None:
    with CAPTURES.recording():
        child = os.fork()
        if child == 0:
            with CAPTURES:
                os._exit(CAPTURES._users)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert can_enter(CAPTURES)

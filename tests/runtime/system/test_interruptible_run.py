"""Native runs that end early: by a check, a signal, or their own fault."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Generator, session
from runtime.bundle import Bundle
from runtime.system import interruptible_run
from runtime.system.interruptible_run import run_interruptibly


class Native:
    """Stands in for native code: runs until it is told to end."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self.running = threading.Event()
        self.ended = False

    def run(self) -> None:
        self.running.set()
        try:
            assert self._end.wait(60)
            raise RuntimeError("Exiting due to terminate flag being set to true.")
        finally:
            self.ended = True

    def terminate(self) -> None:
        self._end.set()


def test_a_run_that_ends() -> None:
    done: list[threading.Thread] = []
    run_interruptibly(
        lambda: done.append(threading.current_thread()), pytest.fail, lambda: pytest.fail("checked")
    )
    assert len(done) == 1
    assert done[0] is not threading.current_thread()


def test_a_run_that_nothing_can_end_is_left_to_itself() -> None:
    native = Native()

    def check() -> None:
        assert native.running.wait(60)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        run_interruptibly(native.run, None, check)
    assert not native.ended
    native.terminate()


def test_a_thread_runs_one_after_another() -> None:
    """A thread for each run would take fresh memory each time."""
    threads: list[int] = []
    for _ in range(20):
        run_interruptibly(lambda: threads.append(threading.get_ident()), pytest.fail, lambda: None)
    assert len(set(threads)) <= 2  # one may still be on its way back when the next run begins


def test_runs_at_the_same_time() -> None:
    together = threading.Barrier(4)
    callers = [
        threading.Thread(
            target=run_interruptibly, args=(lambda: together.wait(60), together.abort, lambda: None)
        )
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not together.broken


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    run_interruptibly(lambda: None, pytest.fail, lambda: None)
    child = os.fork()
    if child == 0:
        done: list[bool] = []
        signal.alarm(60)
        run_interruptibly(lambda: done.append(True), lambda: None, lambda: None)
        os._exit(0 if done else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_signal_before_the_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was interrupted on its way to the other thread is not run later."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(interruptible_run, "_take_helper", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(lambda: pytest.fail("was run"), lambda: None, lambda: None)


def test_what_is_dropped_is_not_run() -> None:
    run = interruptible_run._Run(lambda: pytest.fail("was run"))
    run.drop()
    run.work()
    assert run.ended.is_set()
    assert run.failure is None


def test_what_the_run_raises_is_raised() -> None:
    def run() -> None:
        raise KeyError("of the run")

    with pytest.raises(KeyError, match="of the run"):
        run_interruptibly(run, pytest.fail, lambda: None)


def test_a_check_ends_the_run() -> None:
    native = Native()

    def check() -> None:
        raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        run_interruptibly(native.run, native.terminate, check)
    assert native.ended


def test_a_signal_ends_the_run() -> None:
    native = Native()

    def check() -> None:
        assert native.running.wait(60)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(native.run, native.terminate, check)
    assert native.ended


def test_a_second_signal_does_not_leave_the_run_behind() -> None:
    native = Native()

    def check() -> None:
        raise KeyboardInterrupt

    def terminate() -> None:
        def later() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            native.terminate()

        threading.Thread(target=later).start()

    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(native.run, terminate, check)
    assert native.ended


@pytest.mark.parametrize("signals", [1, 3])
def test_signals_while_a_run_is_being_ended(signals: int) -> None:
    """Its buffers are the caller's: whatever comes, it is waited for."""
    native = Native()

    class Interrupted(threading.Event):
        """Signals come while it is waited for; the run ends after the last."""

        left = signals

        def wait(self, timeout: float | None = None) -> bool:
            if self.left:
                self.left -= 1
                signal.raise_signal(signal.SIGINT)
                pytest.fail("the signal raised nothing")
            native.terminate()
            return super().wait(timeout)

    run = interruptible_run._Run(native.run)
    run.ended = Interrupted()
    helper = threading.Thread(target=run.work)
    helper.start()
    assert native.running.wait(60)
    try:
        run.drop()
        assert native.ended
    except KeyboardInterrupt:
        pytest.fail("a signal has left the run behind")
    finally:
        native.terminate()
        helper.join(60)


# === In ONNX Runtime ===


class Ended(Exception):  # noqa: N818
    pass


@pytest.fixture
def long_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treats every run as a long one."""
    monkeypatch.setattr(session, "LONG_RUN", 0)


def test_interruptible_runs_give_the_same(
    any_decoder: session.SessionDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [[2, 5, 6, 7, 8], [0], [1], [2], [3]]
    steps = []
    for long_run in (0, float("inf")):
        monkeypatch.setattr(session, "LONG_RUN", long_run)
        cache, logits = any_decoder.new_cache(1, 12), []
        for piece in pieces:
            length = np.array([len(piece)], np.int32)
            output = any_decoder.append(cache, np.array([piece]), length, check=lambda: None)
            logits.append(output.logits.copy())
        steps.append(np.stack(logits))
    assert (steps[0] == steps[1]).all()


@pytest.mark.usefixtures("long_runs")
def test_a_run_that_is_ended_appends_nothing(
    cpu_decoder: session.SessionDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime itself is told to end, from another thread than the one that runs."""
    ended: list[str] = []

    def run_and_end(run: Any, terminate: Any, check: Any) -> None:
        terminate()
        try:
            run()
        except RuntimeError as error:
            ended.append(str(error))
            raise Ended from None

    cache = cpu_decoder.new_cache(2, 12)
    prompts, lengths = np.array([[2, 5, 6], [7, 8, 0]]), np.array([3, 2], np.int32)
    with monkeypatch.context() as patch:
        patch.setattr(session, "run_interruptibly", run_and_end)
        with pytest.raises(Ended):
            cpu_decoder.append(cache, prompts, lengths)
    assert "terminate flag" in ended[0]
    assert cache.lengths.tolist() == [0, 0]
    wanted = cpu_decoder.append(cpu_decoder.new_cache(2, 12), prompts, lengths).logits
    assert (cpu_decoder.append(cache, prompts, lengths).logits == wanted).all()


def test_long_runs_only_take_a_thread(
    cpu_decoder: session.SessionDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[Any] = []
    monkeypatch.setattr(
        session, "run_interruptibly", lambda run, _, check: (checks.append(check), run())
    )
    monkeypatch.setattr(session, "LONG_RUN", cpu_decoder.config.num_parameters * 4)
    monkeypatch.setattr(session, "CHUNK_TOKENS", 192)
    cache = cpu_decoder.new_cache(1, 20)
    cpu_decoder.append(cache, np.array([[2, 5, 6]]), np.array([3], np.int32), check=pytest.fail)
    assert checks == []
    four = np.array([[2, 5, 6, 7]]), np.array([4], np.int32)
    cpu_decoder.append(cache, *four, check=pytest.fail)
    assert checks == [pytest.fail]
    cpu_decoder.append(cache, *four)  # signals end it as well
    assert checks == [pytest.fail, None]


@pytest.mark.usefixtures("long_runs")
@pytest.mark.parametrize("sampler", ["greedy", "beam", "contrastive"])
def test_generation_through_interruptible_runs(
    cpu_decoder: session.SessionDecoder, bundle: Bundle, sampler: str, monkeypatch: Any
) -> None:
    generator = Generator(cpu_decoder, bundle.tokenizer, sampler)
    watched = generator.generate(["ab", "cdefg"], max_length=14, stop_token_ids=None)
    monkeypatch.setattr(session, "LONG_RUN", float("inf"))
    assert generator.generate(["ab", "cdefg"], max_length=14, stop_token_ids=None) == watched


# === Appends at the edges ===


def test_no_columns_append_nothing(any_decoder: session.SessionDecoder) -> None:
    cache = any_decoder.new_cache(2, 8)
    nothing = any_decoder.append(cache, np.zeros((2, 0), np.int64), np.zeros(2, np.int32))
    assert nothing.logits.shape == (2, 300)
    states = any_decoder.append(
        cache, np.zeros((2, 0), np.int64), np.zeros(2, np.int32), hidden_states=True
    ).hidden_states
    assert states is not None
    assert states.shape == (2, 0, 32)
    assert cache.lengths.tolist() == [0, 0]


def test_rows_without_tokens_show_no_old_memory(any_decoder: session.SessionDecoder) -> None:
    cache = any_decoder.new_cache(3, 12)
    any_decoder.append(cache, np.array([[2, 5]] * 3), np.array([2, 0, 1], np.int32))
    token_ids, lengths = np.array([[5, 6, 7]] * 3), np.array([0, 0, 3], np.int32)
    assert np.isfinite(any_decoder.append(cache, token_ids, lengths).logits).all()
    assert cache.lengths.tolist() == [2, 0, 4]


def test_an_interrupted_generator_goes_on(toy_bundle: Path) -> None:
    """A signal during generation leaves the generator usable."""
    generator = Generator.from_bundle(toy_bundle, device="cpu", threads=1)
    generator.compile("greedy")
    text = generator.generate("ab", max_length=20)

    class Interrupting:
        def is_set(self) -> bool:
            signal.raise_signal(signal.SIGINT)
            return False

    with pytest.raises(KeyboardInterrupt):
        generator.generate("ab", max_length=20, cancel=Interrupting())
    assert generator.cache_bytes_in_use == 0
    assert generator.generate("ab", max_length=20) == text

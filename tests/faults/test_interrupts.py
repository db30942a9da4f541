"""The end by Ctrl-C and SIGTERM; the long run is `python -m tests.faults.interrupts`.

Here no time is measured: what a process does that never ends by itself shows who ended it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.command import run_command
from runtime.system import interrupts
from tests.signals import heed_signals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals of POSIX")

# A command that prints "ready" and then does what cannot be interrupted, or is not told of it.
COMMAND = """
import ctypes, pathlib, signal, subprocess, sys, threading, time
from runtime.command import run_command
from runtime.system.interrupts import undone_when_ended
what, place = sys.argv[1], pathlib.Path(sys.argv[2])
folder = place / "folder"
partial = folder / "partial"

def run(_):
    folder.mkdir()
    partial.write_text("half")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    (place / "child").write_text(str(child.pid))
    with (
        undone_when_ended((place / "child").unlink),
        undone_when_ended(folder.rmdir),  # which works where the next one has been undone before
        undone_when_ended(partial.unlink),
    ):
        if what == "pool":
            threading.Thread(target=time.sleep, args=(1000,)).start()
        if what == "native code":
            # The system gives a signal to a thread that does not block it: this one sleeps on.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
            sleep = ctypes.CDLL(None).sleep
            threading.Timer(0.5, print, ("ready",), {"flush": True}).start()  # it sleeps by then
            sleep(1000)
        if what == "swallowed":
            while True:
                try:
                    print("ready", flush=True)
                    time.sleep(1000)
                except KeyboardInterrupt:
                    pass
        if what == "other error":
            try:
                print("ready", flush=True)
                time.sleep(1000)
            except KeyboardInterrupt:
                child.kill()
                partial.unlink()
                folder.rmdir()
                (place / "child").unlink()
                raise SystemError("a module made this of the interrupt") from None
        print("ready", flush=True)
        time.sleep(1000)

sys.exit(run_command("test", run, None, "interrupted; gone"))
"""


def interrupt(repository, place, what, number, times=1):
    """Exit code and standard error of the command, which was sent a signal when it was ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, what, str(place)],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
    )
    assert process.stdout.readline() == "ready\n"
    child = int((place / "child").read_text())
    for _ in range(times):
        process.send_signal(number)
    try:
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, told, child


def is_running(process_id):
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("what", ["native code", "swallowed"])
def test_a_process_that_does_not_end_is_ended(repository, tmp_path, what, number):
    code, told, child = interrupt(repository, tmp_path, what, number)
    assert (code, told) == (128 + number, "\ntest: interrupted; gone\n")
    assert list(tmp_path.iterdir()) == []
    if sys.platform == "linux":
        assert not is_running(child)


def test_an_interrupt_that_became_another_error(repository, tmp_path):
    code, told, _ = interrupt(repository, tmp_path, "other error", signal.SIGINT)
    assert (code, told) == (130, "\ntest: interrupted; gone\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("times", [1, 2])
def test_a_pool_that_the_interpreter_would_wait_for(repository, tmp_path, times):
    code, told, child = interrupt(repository, tmp_path, "pool", signal.SIGINT, times)
    assert (code, told) == (130, "\ntest: interrupted; gone\n")
    if sys.platform == "linux":
        assert not is_running(child)


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interrupts.Watch("never told") as watch:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) == watch._handle
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_handlers_before_are_there_afterwards():
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    descriptors = len(os.listdir("/dev/fd"))
    assert run_command("test", lambda _: None, SimpleNamespace()) == 0
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert len(os.listdir("/dev/fd")) == descriptors


def test_an_error_of_our_own_is_not_hidden():
    with pytest.raises(AssertionError, match="a bug"):
        run_command("test", lambda _: (_ for _ in ()).throw(AssertionError("a bug")), SimpleNamespace())

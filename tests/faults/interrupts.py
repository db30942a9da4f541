"""Ctrl-C and SIGTERM in every phase of the commands: exit code, time to exit, what is left behind.

    python -m tests.faults.interrupts [--repeats 3] [--shape opt_125m] [--phase NAME ...] [--seed 0]

Every trial starts the command as a user does, waits until it says that the phase has begun and a random
moment longer, and sends the signal to that process alone, which is harder than Ctrl-C at a terminal:
its children get none. Exit code 1 if an exit code is not 130 (143 for SIGTERM), something is left, or
an end takes more than 2 s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.make_checkpoint import write_checkpoint
from bench.shapes import SHAPES
from graphs.contract import ModelConfig
from graphs.manifest import MANIFEST_FILE, ManifestError, read_manifest
from tests.exporter.hub_servers import HubServer, HuggingFaceServer, KaggleServer
from tests.signals import heed_signals

MOST_SECONDS = 2.0
PATIENCE_SECONDS = 300.0
REPOSITORY = Path(__file__).parents[2]
TOKENIZER = REPOSITORY / "exporter" / "presets" / "opt_tiny_en" / "assets" / "tokenizer"


@dataclass(frozen=True)
class Phase:
    """Something to interrupt.

    Attributes:
        name: for people.
        marker: what the process has told or printed when the phase has begun.
        longest: seconds, at most, from then to the signal.
        options: of `opt-export`; none for `opt-generate`.
        hub: what the preset is downloaded from.
        last: whether the bundle may be there before the signal is.
    """

    name: str
    marker: str
    longest: float
    options: tuple[str, ...] = ()
    hub: type[HubServer] | None = None
    last: bool = False

    @property
    def generates(self) -> bool:
        """Whether the command is `opt-generate`."""
        return self.name.startswith("generate")


PHASES = (
    Phase("download from Hugging Face", "", 0.5, hub=HuggingFaceServer),
    Phase("download from Kaggle", "", 0.5, hub=KaggleServer),
    Phase("import of TensorFlow", "tensorflow", 2.0),
    Phase("tracing", "Tracing", 5.0, ("--precision", "int8")),
    Phase("calibration", "Calibrating", 2.0, ("--precision", "int8")),
    Phase("smoothing", "Smoothing", 0.3, ("--precision", "int8")),
    Phase("binding, fp32", "Writing weights", 0.5),
    Phase("binding, int4", "Writing weights", 3.0, ("--precision", "int4")),
    Phase("verifying graphs", "Verifying graphs", 0.3),
    Phase("comparing logits", "Comparing logits", 2.0),
    Phase("comparing, the bundle's process", "runtime.probe", 0.5),
    Phase("renaming", "Finishing", 0.05, last=True),
    Phase("generate, loading", "onnxruntime", 0.5),
    Phase("generate, text", " ", 1.0),
)


@dataclass
class Trial:
    """An interrupt and how the process ended.

    Attributes:
        seconds: from the signal to the end of the process.
        problems: what should not be.
    """

    seconds: float
    problems: list[str] = field(default_factory=list)


class Bench:
    """What the commands work on.

    Args:
        folder: empty, to work in.
        shape: of the model.
        seed: of the moments.
    """

    def __init__(self, folder: Path, shape: ModelConfig, seed: int = 0) -> None:
        self._folder, self._random = folder, random.Random(seed)
        self._preset, self._bundle = folder / "preset", folder / "bundle"
        write_checkpoint(shape, self._preset, dtype="float16")
        for name, of_ours in (("vocab.json", "vocabulary.json"), ("merges.txt", "merges.txt")):
            shutil.copy(TOKENIZER / of_ours, self._preset / name)  # 4,096 tokens are enough to write
        self._work = folder / "work"
        self._shape = shape

    def run(self, phase: Phase, number: int = signal.SIGINT, times: int = 1) -> Trial:
        """One interrupt: the signal, `times` times in quick succession."""
        with _slow_hub(phase.hub) as hub:
            command, environment = self._command(phase, hub)
            self._work.mkdir()
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=heed_signals,
            )
            try:
                told = self._wait(process, phase, hub)
                time.sleep(self._random.uniform(0, phase.longest))
                return self._interrupt(process, phase, number, times, told)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                subprocess.run(["rm", "-rf", str(self._work)], check=True)

    def _command(self, phase: Phase, hub: HubServer | None) -> tuple[list[str], dict[str, str]]:
        if phase.generates:
            if not self._bundle.exists():
                _export(self._preset, self._bundle)
            length = str(self._shape.max_sequence_length)
            options = ["the quick brown fox", "--max-length", length, "--no-stop"]
            return [sys.executable, "-m", "runtime.cli", str(self._bundle), *options], {}
        preset, environment = str(self._preset), {}
        if hub is not None:
            preset = (
                "hf://me/toy" if isinstance(hub, HuggingFaceServer) else "kaggle://me/opt/keras/toy"
            )
            environment = {"HOME": str(self._folder / "home"), **hub.environment()}
        command = [sys.executable, "-m", "exporter.cli", "--preset", preset]
        target = self._work / "new" / "bundle"
        return [*command, "--output", str(target), "--verify", "full", *phase.options], environment

    def _wait(self, process: subprocess.Popen, phase: Phase, hub: HubServer | None) -> str:
        """Waits for a phase to begin; what the process has told until then."""
        told, deadline = "", time.monotonic() + PATIENCE_SECONDS
        while not _has_begun(process.pid, phase, hub, told):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{phase.name} never began: {told[-500:]}")
            assert process.stdout is not None
            if select.select([process.stdout], [], [], 0.01)[0]:
                told += os.read(process.stdout.fileno(), 65536).decode(errors="replace")
        return told

    def _interrupt(
        self, process: subprocess.Popen, phase: Phase, number: int, times: int, told: str
    ) -> Trial:
        started = time.monotonic()
        for _ in range(times):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
            time.sleep(0.05 * (times > 1))
        pipe, rest = process.stdout, []
        assert pipe is not None
        reader = threading.Thread(target=lambda: rest.append(pipe.read()), daemon=True)
        reader.start()
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            return Trial(30.0, ["it did not end within 30 s"])
        trial = Trial(time.monotonic() - started)
        # A second signal may meet the interpreter's own end, which has given up its handlers: killed by
        # it, which shells tell as the same number.
        allowed = {128 + number} | ({-number} if times > 1 else set())
        left = sorted(str(path.relative_to(self._work)) for path in self._work.rglob("*"))
        if phase.last and _is_whole(self._work / "new" / "bundle", left):  # the signal came too late
            allowed |= {0, -number}
            left = []
        if code not in allowed:
            reader.join(1)
            told += b"".join(rest).decode(errors="replace")
            trial.problems.append(f"exit code {code}, told {told[-500:]!r}")
        if left:
            trial.problems.append(f"left behind: {', '.join(left)}")
        if orphans := _session_members(process.pid):
            trial.problems.append(f"still running: {', '.join(orphans)}")
        if trial.seconds > MOST_SECONDS:
            trial.problems.append(f"took {trial.seconds:.2f} s")
        return trial


def _is_whole(bundle: Path, found: list[str]) -> bool:
    """Whether a whole bundle is there, and nothing else was found."""
    try:
        manifest = read_manifest(bundle)
        manifest.check_files(bundle, weights_hash=True)
    except (ManifestError, OSError):
        return False
    names = [MANIFEST_FILE, *(entry.name for entry in manifest.files)]
    return found == sorted(["new", "new/bundle", *(f"new/bundle/{name}" for name in names)])


def _export(preset: Path, bundle: Path) -> None:
    from tests.faults.exports import start_export

    child = start_export(preset, bundle, "--verify", "none")
    if child.wait():
        raise RuntimeError(child.told)


def _has_begun(process_id: int, phase: Phase, hub: HubServer | None, told: str) -> bool:
    if hub is not None:
        return "model.weights.h5" in hub.requested() or "model.safetensors" in hub.requested()
    if phase.marker in ("tensorflow", "onnxruntime"):
        with contextlib.suppress(OSError):
            return phase.marker in Path(f"/proc/{process_id}/maps").read_text()
        return False
    if phase.marker == "runtime.probe":
        return any(phase.marker in line for line in _session_members(process_id))
    return phase.marker in told


def _session_members(session: int) -> list[str]:
    """Command lines of the processes of a session that are alive."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, member_of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(member_of) == session and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


@contextlib.contextmanager
def _slow_hub(kind: type[HubServer] | None) -> Iterator[HubServer | None]:
    """A hub that never comes to the end of the weights."""
    if kind is None:
        yield None
        return
    weights = "model.safetensors" if kind is HuggingFaceServer else "model.weights.h5"
    config = b'{"model_type": "opt"}' if kind is HuggingFaceServer else b'{"class_name": "OPTBackbone"}'
    files = {"config.json": config, weights: b"\0" * 2**20}

    class Slow(kind):
        def send_file(self, http, name, content, headers):
            if name != weights or http.command == "HEAD":
                super().send_file(http, name, content, headers)
                return
            http.wfile_end = len(content)
            self.contents.append((name, 0))
            http.send_response(200)
            for key, value in headers.items():
                http.send_header(key, value)
            http.send_header("Content-Length", str(len(content)))
            http.end_headers()
            with contextlib.suppress(OSError):
                for start in range(0, len(content), 1024):
                    http.wfile.write(content[start : start + 1024])
                    time.sleep(0.1)

        def requested(self):
            return {name for name, _ in self.contents}

    held = {"me/toy": {"main": files}} if kind is HuggingFaceServer else {"me/opt/keras/toy/1": files}
    with Slow(held) as hub:
        yield hub


def table(rows: Sequence[tuple[str, list[Trial]]]) -> str:
    """Worst time to exit by phase."""
    lines = ["| phase | interrupts | worst, s | problems |", "|---|---|---|---|"]
    for name, trials in rows:
        worst = max(trial.seconds for trial in trials)
        lines.append(
            f"| {name} | {len(trials)} | {worst:.2f} | {sum(map(len, (t.problems for t in trials)))} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Interrupts every phase; returns 1 if one ends in another way than it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="opt_125m")
    parser.add_argument("--phase", nargs="*", help="those with this in their name (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chosen = [p for p in PHASES if not options.phase or any(n in p.name for n in options.phase)]
    rows = []
    with tempfile.TemporaryDirectory(prefix="opt-interrupts-") as folder:
        bench = Bench(Path(folder), SHAPES[options.shape], options.seed)
        for phase in chosen:
            trials = [bench.run(phase) for _ in range(options.repeats)]
            rows.append((phase.name, trials))
            rows.append((f"{phase.name}, SIGTERM", [bench.run(phase, signal.SIGTERM)]))
            rows.append((f"{phase.name}, Ctrl-C twice", [bench.run(phase, times=2)]))
    print(table(rows))
    problems = [f"{name}: {text}" for name, trials in rows for t in trials for text in t.problems]
    print(f"{sum(len(t) for _, t in rows)} interrupts, {len(problems)} problems", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""Loads tokenizers that were made by changing real ones in several places at once, and uses them.

    python -m tests.fuzz.generated_tokenizers --runs 100000 [--seed N] [--minutes M]
    python -m tests.fuzz.generated_tokenizers --replay NUMBER [--seed N]

Each is read in a child process that may have 1 GB of memory, encodes and decodes texts, short, long and
odd, as a call of a generator with a timeout of 5 seconds does, and has 10 seconds for all. It may be
refused in a `ValueError` or be fine; a process that ends, takes longer, runs out of memory, raises
anything else or says it at length is a finding. Prints counts; exit code 1 if anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import PresetError
from exporter.presets.tokenizer_files import hugging_face_tokenizer_files
from graphs.contract import ModelConfig
from runtime.arguments import encode_prompts
from runtime.call_limits import CallCut, CallLimits
from runtime.tokenization.tokenizer import Tokenizer
from tests.fuzz.mutations import mutate_json_value
from tests.fuzz.tokenizer_seeds import (
    PLACES,
    SETTINGS,
    SPECIAL_IDS,
    seeds,
    toy_files,
)

MEMORY = 2**30
SECONDS = 10.0
TIMEOUT = 5.0
MAX_MESSAGE = 2000
_CONFIG = ModelConfig(2**24, 1, 1, 8, 8, 2048)
_SEEDS = seeds()
_BYTE_LEVEL = [name for name, values in _SEEDS.items() if "ByteLevel" in str(values["pre_tokenizer"])]
_TOY = toy_files()
TEXTS = (
    "", " ", "a", "hello hello  [x] é", "</s><pad>\n\n\t ", "1,234.5 'll've #!#\x00\x1c",
    "\ufdfa\u0130\u212b\uac01\u1e9b\u0323 \U0001d400\u2126", "e\u0301\u0323\u200d\u200b\ufeff" * 9,
    "👩‍👩‍👧🏽 \u2028\u0085", "aaab" * 9, " " * 300, "世界" * 20, "SPL1T\r\n",
)  # fmt: skip
LONG_TEXTS = (
    "the quick fox, 12 times. " * 300, "a" * 3000, "\n \t" * 1500, "\ufdfa" * 1000, "é" * 3000,
    "</s>" * 1000, "x1!" * 2000, "a b" * 20_000, "z" * 60_000, " " * 60_000,
)  # fmt: skip


def generated(seed: int, number: int) -> dict[str, str]:
    """The files of one tokenizer, always the same ones for the same numbers."""
    source = random.Random(f"{seed}:{number}")
    if source.random() < 0.15:
        return _plain_files(source)
    names = list(_SEEDS) if source.random() < 0.1 else _BYTE_LEVEL
    values: Any = dict(_SEEDS[source.choice(names)])
    vocabulary = None
    if source.random() < 0.8:  # which is most of a file, and takes most of the time that changes take
        vocabulary, values["model"] = values["model"].get("vocab"), dict(values["model"])
        values["model"].pop("vocab", None)
    values = json.loads(json.dumps(values))
    for _ in range(source.choice((1, 2, 2, 3, 4, 6))):
        values = _change(values, source)
    model = values.get("model") if isinstance(values, dict) else None
    if vocabulary is not None and isinstance(model, dict):
        changed = model.get("vocab")
        model["vocab"] = vocabulary | changed if isinstance(changed, dict) else changed or vocabulary
    special: Any = SPECIAL_IDS
    if source.random() < 0.1:
        special = mutate_json_value(special, source)
    return {"tokenizer.json": json.dumps(values), "special_tokens.json": json.dumps(special)}


def _plain_files(source: random.Random) -> dict[str, str]:
    vocabulary, merges = dict(_TOY[0]), list(_TOY[1])
    for _ in range(source.choice((1, 2, 4, 8))):
        at = source.randrange(len(merges))
        match source.randrange(4):
            case 0:
                vocabulary = mutate_json_value(vocabulary, source)
            case 1:
                del vocabulary[source.choice(list(vocabulary))]
            case 2:
                merges[at : at + source.randrange(3)] = [source.choice(merges)]
            case _:
                merges.insert(at, source.choice(("a b", "a", " ", "Ġ Ġ", "é é", "a\0 b", "x" * 5000)))
        if not isinstance(vocabulary, dict) or not vocabulary:
            break
    return {"vocabulary.json": json.dumps(vocabulary), "merges.txt": "\n".join(merges)}


def _change(values: Any, source: random.Random) -> Any:
    """A tokenizer changed in one place: a step put in, a part of another's, a setting, any value."""
    if not isinstance(values, dict):
        return values
    kind = source.random()
    if kind < 0.55:
        place = source.choice((*(("normalizer", "pre_tokenizer") * 4), *PLACES))
        values[place] = _with_step(values.get(place), *PLACES[place], source)
    elif kind < 0.65:
        part = source.choice(("normalizer", "pre_tokenizer", "post_processor", "added_tokens"))
        values[part] = json.loads(json.dumps(source.choice(list(_SEEDS.values()))[part]))
    elif kind < 0.75:
        path, value = source.choice(SETTINGS)
        place = values
        for name in path[:-1]:
            place = place.get(name) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[path[-1]] = value
    else:
        values = mutate_json_value(values, source)
    return values


def _with_step(old: Any, name: str, known: list[Any], source: random.Random) -> dict[str, Any]:
    """A sequence of the steps there were and one to several more, perhaps within sequences."""
    steps = [] if old is None else [old]
    for _ in range(source.choice((1, 1, 1, 1, 1, 1, 2, 2, 3, 40))):
        steps.insert(source.randrange(len(steps) + 1), source.choice(known))
    sequence: dict[str, Any] = {"type": "Sequence", name: steps}
    for _ in range(source.choice((0, 0, 0, 1, 5))):
        sequence = {"type": "Sequence", name: [sequence]}
    return sequence


# === In the child process ===


def use(files: dict[str, str], number: int, folder: Path) -> str:
    """Reads and uses a tokenizer, by way of a file in the folder; returns how that ended.

    Raises:
        BaseException: what it must not end in.
    """
    try:
        if number % 4 == 0 and "tokenizer.json" in files:
            Path(folder, "tokenizer.json").write_text(files["tokenizer.json"], "utf-8")
            found = hugging_face_tokenizer_files(folder, {"eos_token_id": 2, "pad_token_id": 1})
            assert found is not None
            files = found
        tokenizer = Tokenizer.from_files(files)
    except (ValueError, PresetError) as error:
        _check_message(error)
        return "refused"
    long = LONG_TEXTS[number % (10 if number % 50 == 0 else 6)]
    outcome = "used"
    for texts in (list(TEXTS), [long]):
        outcomes = [_use_texts(tokenizer, texts)]
        if outcomes == ["error"] and len(texts) > 1:
            outcomes = [_use_texts(tokenizer, [text]) for text in texts]
        if "cut" in outcomes:
            return "cut"
        if "error" in outcomes:
            outcome = "used with errors"
    with contextlib.suppress(ValueError):  # what has no files says so
        tokenizer.files()
    return outcome


def _use_texts(tokenizer: Tokenizer, texts: list[str]) -> str:
    """Encodes and decodes texts as one call of a generator would."""
    try:
        prompts = encode_prompts(texts, tokenizer, 2048, _CONFIG, CallLimits(TIMEOUT).check)
    except CallCut:
        return "cut"
    except ValueError as error:
        _check_message(error)
        return "too long" if "tokens" in str(error) else "error"
    for ids in prompts:
        assert all(type(i) is int and 0 <= i < 2**24 for i in ids)
        tokenizer.decode(ids, skip_special_tokens=len(ids) % 2 == 0)
    return "used"


def _check_message(error: Exception) -> None:
    message = str(error)
    assert len(message.encode("utf-8", "surrogatepass")) <= MAX_MESSAGE, message[:200]


def work() -> None:
    """Uses the tokenizers whose numbers come in; tells how each ended, a line each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = Path(sys.argv[-1])
    for line in sys.stdin:
        seed, number = map(int, line.split())
        try:
            outcome = use(generated(seed, number), number, folder)
        except BaseException as error:
            traceback.print_exc()
            outcome = f"raised {type(error).__name__}: {' '.join(str(error)[:200].split())}"
        print(number, outcome, flush=True)
        if outcome == "cut":  # what was cut goes on in a thread
            os._exit(0)


# === The process that watches it ===


@dataclass
class Found:
    """What came of the tokenizers: counts by outcome, and the numbers of those that did harm."""

    counts: Counter[str] = field(default_factory=Counter)
    harmful: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, outcome: str) -> None:
        """Notes how one ended."""
        kind = outcome.partition(":")[0]
        self.counts[kind] += 1
        if kind not in ("used", "used with errors", "refused", "cut"):
            self.harmful.append((number, outcome))


class _Worker:
    """The child process, started anew when it has ended."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "TOKENIZERS_PARALLELISM": "false",
            "RUST_BACKTRACE": "0",
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",
        }
        self._folder = tempfile.TemporaryDirectory()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, "--work", self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )

    def use(self, seed: int, number: int, seconds: float) -> str:
        """How a tokenizer ended; the process may have to be replaced after."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{seed} {number}\n")
            self._process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                self.end()
                return f"took over {seconds:g} s"
        line = self._process.stdout.readline()
        if line:
            return line.removeprefix(f"{number} ").rstrip("\n")
        code = self._process.wait()
        self._log.seek(0)
        log = self._log.read()[-300:].decode(errors="replace")
        return f"ended the process by {-code if code < 0 else code}: {' '.join(log.split())}"

    @property
    def alive(self) -> bool:
        """Whether it can be given more."""
        return self._process.poll() is None

    def end(self) -> None:
        """Ends it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()


def run(seed: int, numbers: range, seconds: float = float("inf")) -> Found:
    """Uses generated tokenizers one after another, for so long at most."""
    found = Found()
    until = time.monotonic() + seconds
    worker = _Worker()
    first = True  # it has to start first
    try:
        for number in numbers:
            outcome = worker.use(seed, number, SECONDS + 60 * first)
            found.add(number, outcome)
            if found.harmful and found.harmful[-1][0] == number:
                print(f"{number}: {outcome}", file=sys.stderr, flush=True)
            first = outcome == "cut" or not worker.alive
            if first:
                worker.end()
                worker = _Worker()
            if number % 1000 == 999:
                print(f"{number + 1}: {dict(found.counts)}", file=sys.stderr, flush=True)
            if time.monotonic() > until:
                break
    finally:
        worker.end()
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns 1 if anything was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.generated_tokenizers", description="Uses generated tokenizers."
    )
    parser.add_argument("--runs", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other tokenizers")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="the longest it may take")
    parser.add_argument("--replay", type=int, metavar="NUMBER", help="use one, in this process")
    parser.add_argument("--work", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work()
        return 0
    if options.replay is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(use(generated(options.seed, options.replay), options.replay, Path(folder)))
        return 0
    started = time.monotonic()
    numbers = range(options.first, options.first + options.runs)
    found = run(options.seed, numbers, 60 * options.minutes)
    total, taken = sum(found.counts.values()), time.monotonic() - started
    print(f"{total} tokenizers in {taken:.0f} s, {total / taken:.0f} a second: {dict(found.counts)}")
    for number, outcome in found.harmful:
        print(f"- {number}: {outcome}")
    return 1 if found.harmful else 0


if __name__ == "__main__":
    sys.exit(main())

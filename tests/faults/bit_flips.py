"""Flips bits of bundles and of their packs: `python -m tests.faults.bit_flips --count 500 [--seed 0]`.

Each flip alters one bit of one file, spread evenly over all files and over ten regions of each. Then
the bundle is checked, loaded, and loaded with `verify=True`, in a process of its own whose crash is
seen. Prints a table; exits 1 if a check misses a flip, an output is wrong after a load with
`verify=True`, or a process crashes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

REGIONS = 10
PROMPT, LENGTH = "The import statement", 24
PRECISIONS = ("fp32", "int8", "int4")


@dataclass(frozen=True)
class Flip:
    """One bit of a file, which is named relative to its bundle's folder."""

    file: str
    byte: int
    bit: int


@dataclass(frozen=True)
class Outcome:
    """What became of a flip.

    Attributes:
        checked: whether `--check` found it.
        loaded: whether loading found it: an error, or a pack that was made anew.
        wrong: whether a load without an error gave another output.
        wrong_verified: the same with `verify=True`.
        crashed: whether a process died.
    """

    checked: bool = False
    loaded: bool = False
    wrong: bool = False
    wrong_verified: bool = False
    crashed: bool = False


Answer = tuple[str, tuple[int, ...], tuple[float, ...]]


def answer(folder: Path, *, verify: bool, packed_weights: bool = True) -> Answer:
    """What a bundle says: a text, and the tokens and logits of a short run."""
    from runtime import Generator
    from runtime.bundle import open_bundle
    from runtime.session import SessionDecoder
    from runtime.stored_probe import make_probe

    bundle, decoder = open_bundle(
        folder,
        lambda found: SessionDecoder(found, threads=1, packed_weights=packed_weights),
        verify=verify,
    )
    probe = make_probe(decoder, "fp32")
    text = ""
    if bundle.tokenizer is not None:
        generator = Generator(decoder, bundle.tokenizer, "greedy")
        text = generator.generate(PROMPT, max_length=LENGTH)
    return (text, probe.token_ids, probe.logits) if probe else (text, (), ())


def _try(
    folder: Path, expected: tuple[Answer, Answer], pristine: Path, flip: Flip, kind: str
) -> tuple[bool, bool]:
    """Whether one way to use an altered bundle found the flip, and whether it gave a wrong output."""
    from exporter.check import UnsoundBundleError, check_bundle
    from runtime import BundleError

    warnings.simplefilter("error")
    _restore(folder, pristine, flip)
    altered = _flip(folder / flip.file, flip)
    try:
        if kind == "check":
            check_bundle(folder)
            return False, False
        found = answer(folder, verify=kind != "load", packed_weights=kind != "verify unpacked")
    except (UnsoundBundleError, BundleError):
        return True, False
    made_anew = (folder / flip.file).read_bytes() != altered
    return made_anew, found != expected[kind == "verify unpacked"]


def _flip(path: Path, flip: Flip) -> bytes:
    data = bytearray(path.read_bytes())
    data[flip.byte] ^= 1 << flip.bit
    path.write_bytes(data)
    return bytes(data)


def _restore(folder: Path, pristine: Path, flip: Flip) -> None:
    """Undoes a flip, and what was done because of it: a pack is made anew as a whole."""
    top = Path(flip.file).parts[0]
    if top != flip.file:
        shutil.rmtree(folder / top, ignore_errors=True)
        shutil.copytree(pristine / top, folder / top)
    else:
        shutil.copyfile(pristine / top, folder / top)


def plan(files: Sequence[tuple[Path, str]], count: int, seed: int) -> Iterator[tuple[Path, Flip]]:
    """Flips in the files of bundles: file by file, and with each round in the next of the regions."""
    generator = random.Random(seed)
    for i in range(count):
        folder, name = files[i % len(files)]
        size = (folder / name).stat().st_size
        region = i // len(files) % REGIONS
        start, end = size * region // REGIONS, size * (region + 1) // REGIONS
        byte = generator.randrange(start, end) if end > start else generator.randrange(size)
        yield folder, Flip(name, byte, generator.randrange(8))


class FlipRun:
    """Flips bits of bundles, each in a working copy beside a pristine one.

    Args:
        bundles: folders, which are not altered.
        scratch: an empty folder; the user's cache folder is put there too.
    """

    def __init__(self, bundles: Iterable[Path], scratch: Path) -> None:
        os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
        self._pool: ProcessPoolExecutor | None = None
        self._pristine: dict[Path, Path] = {}
        self._expected: dict[Path, tuple[Answer, Answer]] = {}
        for i, bundle in enumerate(bundles):
            folder = scratch / f"{i}_{bundle.name}"
            shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("packed"))
            packed = self._run(answer, folder, verify=True)  # which makes the packs
            unpacked = self._run(answer, folder, verify=True, packed_weights=False)
            self._expected[folder] = packed, unpacked
            self._pristine[folder] = Path(shutil.copytree(folder, scratch / f"pristine_{i}"))

    @property
    def files(self) -> list[tuple[Path, str]]:
        """All files that have bits, those of packs too, by working copy."""
        return [
            (folder, path.relative_to(folder).as_posix())
            for folder in self._pristine
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.stat().st_size
        ]

    def outcome(self, folder: Path, flip: Flip) -> Outcome:
        """Flips a bit, tries everything, and undoes it."""
        pristine = self._pristine[folder]
        arguments = (folder, self._expected[folder], pristine, flip)
        try:
            checked, _ = self._run(_try, *arguments, "check")
            loaded, wrong = self._run(_try, *arguments, "load")
            results = [self._run(_try, *arguments, f"verify{mode}") for mode in ("", " unpacked")]
            return Outcome(checked, loaded, wrong, any(bad for _, bad in results))
        except BrokenProcessPool:
            self._pool = None
            return Outcome(crashed=True)
        finally:
            _restore(folder, pristine, flip)

    def close(self) -> None:
        """Ends the process that loads the bundles."""
        if self._pool is not None:
            self._pool.shutdown()

    def _run(self, function, *arguments, **options):
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        return self._pool.submit(function, *arguments, **options).result(timeout=300)


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """Counts by file, as Markdown."""
    lines = [
        "| file | flips | found by --check | found by loading | wrong output after loading "
        "| wrong output after loading with verify=True | crashes |",
        "|---|---|---|---|---|---|---|",
    ]
    everything = [outcome for found in outcomes.values() for outcome in found]
    for name, found in [*sorted(outcomes.items()), ("all", everything)]:
        counts = [len(found)] + [
            sum(getattr(outcome, field) for outcome in found)
            for field in ("checked", "loaded", "wrong", "wrong_verified", "crashed")
        ]
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def is_within_bounds(outcomes: Iterable[Outcome]) -> bool:
    """Whether every flip was found by the check, and none gave a wrong output when verified."""
    return all(o.checked and not o.wrong_verified and not o.crashed for o in outcomes)


def run(bundles: Iterable[Path], scratch: Path, count: int, seed: int) -> dict[str, list[Outcome]]:
    """Flips bits and collects what became of them by file; packs by the names within them."""
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    flips = FlipRun(bundles, scratch)
    try:
        for done, (folder, flip) in enumerate(plan(flips.files, count, seed), 1):
            parts = Path(flip.file).parts
            name = flip.file if len(parts) == 1 else f"packed/…/{parts[-1]}"
            outcome = flips.outcome(folder, flip)
            outcomes[name].append(outcome)
            if not is_within_bounds([outcome]):
                print(f"{folder.name}: {flip}: {outcome}", file=sys.stderr)
            if done % 50 == 0:
                print(f"{done} of {count}", file=sys.stderr)
    finally:
        flips.close()
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports the embedded preset in all precisions, flips bits and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", action="append", type=Path, help="instead of the embedded preset")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="opt-flips-") as scratch:
        bundles = options.bundle
        if not bundles:
            from exporter import export_bundle

            bundles = [Path(scratch, precision) for precision in PRECISIONS]
            for bundle in bundles:
                export_bundle("opt_tiny_en", bundle, precision=bundle.name)
        outcomes = run(bundles, Path(scratch, "work"), options.count, options.seed)
    print(table(outcomes))
    return 0 if is_within_bounds(o for found in outcomes.values() for o in found) else 1


if __name__ == "__main__":
    sys.exit(main())

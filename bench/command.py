"""What the commands of this package share: checked options and where results go."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def check_counts(options: argparse.Namespace, **least: int) -> None:
    """Checks options that count something; `least` gives the smallest value of each.

    Raises:
        ValueError: naming the first option that is too small.
    """
    for name, minimum in least.items():
        value = getattr(options, name)
        if value is not None and value < minimum:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least {minimum}, got {value}")


def parse_counts(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1 from `"1,8"`.

    Raises:
        ValueError: naming the option, if the text is no list of these.
    """
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise ValueError(
            f"{option} must be whole numbers of at least 1 with commas between, as in 1,8; got {text!r}"
        )
    return counts


def check_output(option: str, path: str | None) -> None:
    """Fails before the work rather than after it where a result cannot be written.

    Raises:
        ValueError: if the folder of the file is not there.
    """
    if path not in (None, "-") and not Path(str(path)).absolute().parent.is_dir():
        raise ValueError(f"{option}: there is no folder {Path(str(path)).parent} to write into")


def print_progress(text: str) -> None:
    """Tells a person at a terminal, on standard error, what is being done."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def write_json(value: dict[str, Any], path: str) -> None:
    """Writes JSON to a file, or to standard output for `-`."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
    else:
        Path(path).write_text(text, encoding="utf-8")

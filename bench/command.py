"""What the commands of this package share: checked options and where results go."""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

from runtime.system.output_file import write_output
from runtime.system.standard_streams import is_unicode, print_error, print_out


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


def print_progress(text: str) -> None:
    """Tells a person at a terminal, on standard error, what is being done."""
    if sys.stderr.isatty():
        print_error(text)


def write_json(value: dict[str, Any], path: str) -> None:
    """Writes JSON to the file that `--json` names, or to standard output for `-`.

    Raises:
        OSError: if it cannot be written.
        ValueError: if another process writes to the file.
    """
    ascii_only = path == "-" and not is_unicode(sys.stdout)
    text = json.dumps(_finite(value), indent=2, ensure_ascii=ascii_only, allow_nan=False)
    if path == "-":
        print_out(text)
    else:
        write_output("--json", path, f"{text}\n".encode("utf-8", "backslashreplace"))


def _finite(value: Any) -> Any:
    """The value with `None`, JSON's null, for numbers that JSON has not."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

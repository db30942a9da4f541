"""The options of a command that become `GenerationOptions`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphs.shown import shown
from runtime.sampler_options import given_sampler
from runtime.text_files import read_text

if TYPE_CHECKING:
    from runtime.generation_options import GenerationOptions

MAX_OPTIONS_BYTES = 2**20
# Drawing has its own options where the sampler's are not enough; these two belong to both.
_SHARED = ("temperature", "seed")
_DRAWING = "drawing, in place of a sampler"


@dataclass(frozen=True)
class _Option:
    """A command's option for a field; `read` makes the field's value of each text that is given."""

    flag: str
    metavar: str
    help: str
    read: Callable[[str], Any] = str
    repeated: bool = False
    field: str = ""

    @property
    def name(self) -> str:
        return self.field or self.flag[2:].replace("-", "_")


def _ids(text: str) -> list[int]:
    return [int(part) for part in text.replace(",", " ").split()]


def _bias(text: str) -> tuple[str, float]:
    token, _, number = text.partition("=")
    return token.strip(), float(number)


def _json_or_file(text: str) -> str:
    return text if text.lstrip().startswith(("{", "true", "false")) else _file(text)


def _file(name: str) -> str:
    try:
        return read_text(Path(name), MAX_OPTIONS_BYTES)
    except OSError as error:  # the name may be a text that was meant to be in a file
        raise ValueError(f"{shown(name)} cannot be read: {error.strerror}") from None


_GROUPS: dict[str, tuple[_Option, ...]] = {
    "lengths and ends": (
        _Option("--max-new-tokens", "N", "most tokens of the answer", int),
        _Option("--min-new-tokens", "N", "tokens before which nothing ends it", int),
        _Option("--stop", "TEXT", "end where this comes up; repeatable", repeated=True),
        _Option("--stop-token-ids", "IDS", "tokens that end it too, such as 50118,4", _ids),
    ),
    _DRAWING: (
        _Option("--top-k", "N", "keep the N most probable tokens", int),
        _Option("--top-p", "X", "keep the most probable tokens that together have X", float),
        _Option("--min-p", "X", "keep tokens with X of the best one's probability", float),
        _Option("--typical-p", "X", "keep the most typical tokens that together have X", float),
        _Option("--epsilon-cutoff", "X", "keep tokens of at least this probability", float),
        _Option("--eta-cutoff", "X", "the same, lower where many are probable", float),
    ),
    "penalties and biases": (
        _Option("--repetition-penalty", "X", "of tokens in prompt and answer; 1 is none", float),
        _Option("--presence-penalty", "X", "of tokens in the answer, -2 to 2", float),
        _Option("--frequency-penalty", "X", "the same for each time, -2 to 2", float),
        _Option("--no-repeat-ngram-size", "N", "no N tokens in a row come twice", int),
        _Option("--logit-bias", "ID=X", "add X to a token's logits; repeatable", _bias, repeated=True),
        _Option("--bad-words-ids", "IDS", "a sequence not to write; repeatable", _ids, repeated=True),
        _Option("--suppress-tokens", "IDS", "tokens that are never drawn", _ids),
        _Option("--begin-suppress-tokens", "IDS", "the same, of the first new token", _ids),
        _Option("--allowed-token-ids", "IDS", "the only tokens that are drawn", _ids),
    ),
    "structure (needs opt-onnx[structured])": (
        _Option("--json-schema", "FILE|JSON", "a JSON Schema that the answer satisfies", _json_or_file),
        _Option("--regex", "PATTERN", "a regular expression that the answer matches"),
        _Option("--choice", "TEXT", "one of these is the answer; repeatable", repeated=True),
        _Option("--grammar", "FILE", "a grammar in Lark's notation", _file),
    ),
    "samples and log-probabilities": (
        _Option("--n", "N", "texts of each prompt", int),
        _Option("--best-of", "N", "write N and give the most probable of them", int),
        _Option("--logprobs", "N", "with --input: of each new token and the N best", int),
        _Option("--prompt-logprobs", "N", "with --input: the same of the prompt's", int),
    ),
}
_FLAGS = {
    "lengths and ends": (
        ("--include-stop", "include_stop_str_in_output", "keep the stop string in the text"),
        ("--ignore-eos", "ignore_eos", "the model's own end tokens end nothing"),
    ),
    "structure (needs opt-onnx[structured])": (
        ("--json-object", "json_object", "the answer is a JSON object"),
    ),
}


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options, in groups, and `--options`."""
    parser.add_argument(
        "--options", metavar="FILE", help="options by their names in Python, as a JSON object"
    )
    for title, options in _GROUPS.items():
        group = parser.add_argument_group(title)
        for option in options:
            group.add_argument(
                option.flag,
                dest=option.name,
                metavar=option.metavar,
                help=option.help,
                action="append" if option.repeated else "store",
            )
        for flag, name, text in _FLAGS.get(title, ()):
            group.add_argument(flag, dest=name, action="store_true", default=None, help=text)


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that a command line gives, by name: `--options` first, then each that has its own.

    `--temperature` and `--seed` are theirs, not the sampler's, where they say how to draw.

    Raises:
        ValueError: if a value cannot be read, or the command line names a sampler and says how to draw.
    """
    drawing = [
        option.flag for option in _GROUPS[_DRAWING] if getattr(arguments, option.name) is not None
    ]
    if drawing and (others := given_sampler(arguments)):
        raise ValueError(
            f"{drawing[0]} draws tokens in place of a sampler: leave it out, or {', '.join(others)}"
        )
    values: dict[str, Any] = {}
    if arguments.options is not None:
        values |= read_options_file(arguments.options)
    for options in _GROUPS.values():
        for option in options:
            given = getattr(arguments, option.name)
            if given is None:
                continue
            try:
                read = [option.read(text) for text in given] if option.repeated else option.read(given)
            except ValueError as error:
                reason = f": {error}" if option.read in (_file, _json_or_file) else ""
                raise ValueError(
                    f"{option.flag} takes {option.metavar}, got {shown(given)}{reason}"
                ) from None
            values[option.name] = dict(read) if option.read is _bias else read
    for flags in _FLAGS.values():
        for _, name, _ in flags:
            if getattr(arguments, name):
                values[name] = True
    if not values and arguments.temperature != 0:
        return values  # without waiting for what options need
    from runtime.generation_options import SAMPLING

    # No sampler takes a temperature of 0, which the options have.
    drawn = arguments.temperature == 0 or any(name in values for name in SAMPLING)
    for name in _SHARED:
        given = getattr(arguments, name)
        if given is not None and (drawn or name in values):
            values[name] = given
            setattr(arguments, name, None)
    return values


def read_options_file(name: str) -> dict[str, Any]:
    """The options of a JSON file.

    Raises:
        ValueError: if it is not a JSON object.
    """
    try:
        text = _file(name)
    except ValueError as error:
        raise ValueError(f"--options takes FILE: {error}") from None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--options {name} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--options {name} must be a JSON object, got {shown(values)}")
    return values


def as_options(values: Mapping[str, Any]) -> GenerationOptions | None:
    """Options of plain values; `None` where there are none.

    Raises:
        ValueError: if one is not valid.
    """
    if not values:
        return None
    from runtime.generation_options import GenerationOptions

    return GenerationOptions.from_dict(values)

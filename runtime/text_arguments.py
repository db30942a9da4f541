"""Prompts as a shell gives them: as arguments, or as one text through a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from runtime.system.standard_streams import input_bytes
from runtime.text_files import decode_text

MAX_BYTES = 16 * 1024**2  # of standard input, which may have no end; no prompt of a model is as long


def given_texts(arguments: Sequence[str]) -> list[str]:
    """The arguments, or what is piped in where there are none; UTF-8 whatever the locale.

    Raises:
        ValueError: if there is nothing, or it is not UTF-8.
    """
    if arguments:
        return [_argument(text, i) for i, text in enumerate(arguments, start=1)]
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("no prompt: give one after BUNDLE, pipe one in, or use --input FILE")
    piped = input_bytes()
    assert piped is not None
    data = piped.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(
            f"standard input, which is one prompt, has more than {MAX_BYTES // 1024**2} MiB; give many "
            "prompts with --input"
        )
    text = decode_text(data, "standard input")
    return [text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")]


def _argument(text: str, number: int) -> str:
    """A text whose bytes Python could not read in the locale's encoding, read as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return decode_text(os.fsencode(text), f"prompt {number} of the command line")
    return text

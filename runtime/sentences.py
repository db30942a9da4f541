"""Errors as a person is told of them: one sentence of bounded length, in characters that show."""

from __future__ import annotations

import re

MOST_CHARACTERS = 2000  # what a message repeats may be megabytes of somebody else's
_OUT_OF_MEMORY = ("can't start new thread",)  # beside `MemoryError` and what native code calls it
_TAIL = 500  # of these at the end, where a message says what to do
# Not line breaks and tabs. Terminals obey the others, which a stranger may have put into a name.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def is_expected(error: BaseException) -> bool:
    """Whether an error is told in a sentence; others are mistakes of this program's own."""
    kinds = (ValueError, OSError, ImportError, RuntimeError, MemoryError, OverflowError)
    return isinstance(error, kinds) or _is_native(error)


def _is_native(error: BaseException) -> bool:
    # ONNX Runtime's exceptions share no base of their own.
    return type(error).__module__.startswith("onnxruntime")


def sentence(error: BaseException) -> str:
    """What is told of an error."""
    told = " ".join(str(error).split()) if _is_native(error) else str(error)
    if isinstance(error, MemoryError) or told in _OUT_OF_MEMORY or "std::bad_alloc" in told:
        told = (
            f"memory ran out{f' ({told})' if told else ''}: give the process more (ulimit -v, the "
            "container's limit), or less to do at a time"
        )
    return legible(told or type(error).__name__)


def legible(text: str) -> str:
    """A text as a message may repeat it: shorter where it is long, and all of it visible."""
    if len(text) > MOST_CHARACTERS:
        text = f"{text[: MOST_CHARACTERS - _TAIL]} … {text[-_TAIL:]}"
    text = text.encode("utf-8", "backslashreplace").decode()  # the names of files may be no text
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)

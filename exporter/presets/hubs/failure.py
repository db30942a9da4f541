"""Why a hub did not give a preset."""

from __future__ import annotations


class HubFailure(Exception):  # noqa: N818  (not the caller's error: the next source may do)
    """One source of a preset did not give it; the message is the reason, one line for people."""


def one_line(error: BaseException) -> str:
    """What an exception says, without the pages that some clients add to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__

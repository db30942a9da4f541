"""Lists of names in errors, which must stay one sentence however many there are."""

from __future__ import annotations

from collections.abc import Collection

MOST = 5
LONGEST = 100  # characters of a name


def listed(names: Collection[object], most: int = MOST) -> str:
    """The first names, comma-separated, and how many more there are."""
    shown = [text if len(text := str(name)) <= LONGEST else f"{text[:LONGEST]}…" for name in names][
        :most
    ]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f", and {rest} more" if rest else "")

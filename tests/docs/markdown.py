"""Reading the guides."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    """Every page of the guides."""
    return sorted(DOCS.glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    """The page's code blocks in a language, in order."""
    return [code for found, code in _BLOCK.findall(page.read_text("utf-8")) if found == language]


def links(page: Path) -> list[str]:
    """Where the page's links lead."""
    return _LINK.findall(_BLOCK.sub("", page.read_text("utf-8")))


def anchors(page: Path) -> set[str]:
    """The names by which links reach the page's headings."""
    text = _BLOCK.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

"""English text that every Python installation has: its own documentation.

The prose of `pydoc_data.topics` and the docstrings of the standard library. It trains the embedded
preset and measures perplexity where no other text is given.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SKIPPED_FOLDERS = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "turtledemo",
    "__pycache__",
}
MIN_CHARACTERS = 40
HELD_OUT_SHARE = 0.05


def documents() -> list[str]:
    """All documents, each once, in a fixed order."""
    unique = dict.fromkeys(text for text in _all_documents() if len(text) >= MIN_CHARACTERS)
    return list(unique)


def split_documents() -> tuple[list[str], list[str]]:
    """Training and held-out documents; a document's own hash decides which, not its place."""
    training: list[str] = []
    held_out: list[str] = []
    for text in documents():
        share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
        (held_out if share < HELD_OUT_SHARE else training).append(text)
    return training, held_out


def _all_documents() -> Iterator[str]:
    from pydoc_data import topics

    for name in sorted(topics.topics):
        yield from _sections(topics.topics[name].strip())
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED_FOLDERS & set(path.relative_to(root).parts):
            yield from _docstrings(path)


def _sections(topic: str, most: int = 2000) -> Iterator[str]:
    """A topic in pieces of whole paragraphs, so that no document is much longer than the others."""
    piece = ""
    for paragraph in topic.split("\n\n"):
        if piece and len(piece) + len(paragraph) > most:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    if piece:
        yield piece


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):  # a file of deliberate errors or of another encoding
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=True)
            if text:
                yield inspect.cleandoc(text).strip()

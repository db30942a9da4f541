"""SECURITY.md promises nothing that no test holds: `tests/faults/promises.md` names them."""

from __future__ import annotations

import re
from pathlib import Path

PAGE, PROMISES = "SECURITY.md", "tests/faults/promises.md"
SECTIONS = ("The working folder", "Bundles", "Checkpoints and presets", "Serving")


def sections(text: str) -> dict[str, str]:
    """The text of each section by its heading."""
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def sentences(text: str) -> list[str]:
    """The sentences of a section, without what only emphasizes or links."""
    found = []
    for paragraph in re.split(r"\n\s*\n|^- ", text, flags=re.MULTILINE):
        plain = " ".join(paragraph.replace("**", "").split())
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", plain)
        found += [s for s in re.split(r"(?<=\.)\s+(?=[A-Z`]|libhdf5)", plain) if s]
    return [sentence for sentence in found if not sentence.startswith("How all this is tried")]


def rows(text: str) -> list[tuple[str, str]]:
    """First words and tests of a table's rows."""
    found = re.findall(r"^\| (.*?) \| (.*?) \|$", text, flags=re.MULTILINE)
    return [row for row in found if row[0] != "sentence"]


def test_every_sentence_has_its_line_in_order(repository: Path) -> None:
    page = sections((repository / PAGE).read_text("utf-8"))
    promises = sections((repository / PROMISES).read_text("utf-8"))
    assert tuple(promises) == SECTIONS
    for name in SECTIONS:
        said, listed = sentences(page[name]), [first for first, _ in rows(promises[name])]
        for sentence, first in zip(said, listed, strict=False):
            assert sentence.startswith(first), name
        assert len(said) == len(listed), name


def test_every_test_is_there(repository: Path) -> None:
    promises = sections((repository / PROMISES).read_text("utf-8"))
    named = [tests for name in SECTIONS for _, tests in rows(promises[name]) if tests != "–"]
    assert len(named) > 40
    for tests in named:
        for test in re.findall(r"`([^`]*)`", tests):
            file, _, function = test.partition("::")
            source = (repository / "tests" / file).read_text("utf-8")
            assert f"def {function or 'test_'}" in source, test

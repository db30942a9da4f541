"""The examples in docstrings run and give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("exporter", "graphs", "runtime")
WITH_EXAMPLES = ["exporter.opt.backbone", "exporter.opt.tokenizer"]


def modules_with_examples() -> list[str]:
    """Every module whose source has a doctest prompt at the start of a line."""
    found = []
    for path in (path for name in PACKAGES for path in sorted((REPOSITORY / name).rglob("*.py"))):
        lines = path.read_text("utf-8").splitlines()
        if any(line.lstrip().startswith(">>> ") for line in lines):
            found.append(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
    return found


def test_no_module_with_examples_is_left_out() -> None:
    assert modules_with_examples() == WITH_EXAMPLES


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str) -> None:
    for package in ("tensorflow", "keras"):
        pytest.importorskip(package)
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.attempted >= 4
    assert results.failed == 0

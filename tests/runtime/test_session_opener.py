"""What sessions need of the process while they are opened."""

from __future__ import annotations

import os

import pytest

from runtime.session_opener import _environment

NAME = "OPT_ONNX_TEST_VARIABLE"


def test_a_variable_lasts_as_long_as_anybody_opens_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two threads the one that began first may be done first."""
    monkeypatch.delenv(NAME, raising=False)
    first, second = _environment({NAME: "1"}), _environment({NAME: "1"})
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert os.environ[NAME] == "1"
    second.__exit__(None, None, None)
    assert NAME not in os.environ


def test_a_variable_that_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "0")
    with _environment({NAME: "1"}):
        assert os.environ[NAME] == "0"
    assert os.environ[NAME] == "0"

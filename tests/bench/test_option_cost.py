"""What the measurement of options asks for and prints."""

from __future__ import annotations

import json

import pytest

from bench import option_cost

SMALL = ["--prompt-tokens", "6", "--new-tokens", "5", "--trials", "1", "--threads", "1"]


def test_every_case_is_timed_and_told(toy_bundle, tmp_path, capsys):
    pytest.importorskip("llguidance")
    assert option_cost.main([str(toy_bundle), *SMALL, "--json", str(tmp_path / "found.json")]) == 0
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))["cases"]
    assert list(found) == list(option_cost.cases(300))
    for name, case in found.items():
        assert f"| {name} " in told
        assert case["steps"] == 4
        assert 0 < case["outside_seconds"]["median"] < case["step_seconds"]["median"]


def test_a_tokenizer_can_be_made_of_any_size():
    for size in (300, 50_272):
        tokenizer = option_cost.synthetic_tokenizer(size)
        assert tokenizer.vocabulary_size() == size
        assert tokenizer.decode(tokenizer.encode("Any text, é\n")) == "Any text, é\n"

"""Generated tokenizers for a few seconds, and whether their watching process sees what it should."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("h5py")

from runtime.tokenization.tokenizer import Tokenizer
from tests.fuzz import generated_tokenizers
from tests.fuzz.generated_tokenizers import Found, _Worker, generated, main, run, use
from tests.fuzz.tokenizer_seeds import SPECIAL_IDS, seeds

RUNS = 150


def test_a_few_are_read_and_used_within_the_limits():
    found = run(0, range(RUNS))
    assert found.harmful == []
    assert found.counts["used"] > RUNS / 8
    assert found.counts["refused"] > RUNS / 8


def test_seeds_of_a_byte_level_are_valid(tmp_path):
    for name, values in seeds().items():
        files = {
            "tokenizer.json": json.dumps(values),
            "special_tokens.json": json.dumps(SPECIAL_IDS),
        }
        if name in ("WordPiece", "Unigram", "byte fallback", "WordLevel"):
            with pytest.raises(
                ValueError, match="is not byte-level BPE, the only kind that OPT models"
            ):
                Tokenizer.from_files(files)
        else:
            assert use(files, 4, tmp_path) == "used"


def test_a_number_is_always_the_same_tokenizer():
    assert generated(3, 7) == generated(3, 7) != generated(3, 8)


def test_what_is_a_finding():
    found = Found()
    for outcome in ("used", "refused", "cut", "used with errors", "raised KeyError: 'a'"):
        found.add(1, outcome)
    assert found.harmful == [(1, "raised KeyError: 'a'")]
    assert found.counts["raised KeyError"] == 1


def test_a_process_that_ends_or_takes_long_is_seen():
    worker = _Worker()
    worker.end()
    assert worker.use(0, 1, 60).startswith("ended the process by 9")
    worker = _Worker()
    assert worker.use(0, 1, 0) == "took over 0 s"
    assert not worker.alive


def test_an_error_of_another_kind_is_one(monkeypatch, tmp_path):
    monkeypatch.setattr(generated_tokenizers.Tokenizer, "decode", lambda *_, **options: 1 / 0)
    files = {"tokenizer.json": json.dumps(seeds()["GPT-2"])}
    files["special_tokens.json"] = json.dumps(SPECIAL_IDS)
    with pytest.raises(ZeroDivisionError):
        use(files, 1, tmp_path)


def test_the_command(capsys):
    assert main(["--runs", "20"]) == 0
    assert capsys.readouterr().out.startswith("20 tokenizers in ")
    assert main(["--replay", "3"]) == 0
    assert capsys.readouterr().out.strip() in ("used", "refused", "used with errors")

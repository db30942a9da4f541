"""The corpus of Python's own documentation and its split."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pydoc_data import topics

import pytest

from exporter.presets import corpus

pytestmark = pytest.mark.slow  # it reads all of the documentation


@pytest.fixture(scope="module")
def documents():
    return corpus.documents()


@pytest.fixture(scope="module")
def parts(documents):
    with pytest.MonkeyPatch.context() as patch:  # reading the whole library twice takes seconds
        patch.setattr(corpus, "documents", lambda: documents)
        return corpus.split_documents()


def test_documents_are_many_and_each_is_there_once(documents):
    assert len(documents) > 3000
    assert len(set(documents)) == len(documents)
    assert min(map(len, documents)) >= 40
    assert 1_500_000 < sum(map(len, documents)) < 20_000_000
    assert any("import statement" in text for text in documents)


def test_the_split_is_whole_and_disjoint(documents, parts):
    training, held_out = parts
    assert training
    assert held_out
    assert not set(training) & set(held_out)
    assert set(training) | set(held_out) == set(documents)
    assert len(training) + len(held_out) == len(documents)


def test_about_a_twentieth_is_held_out(documents, parts):
    share = len(parts[1]) / len(documents)
    assert 0.04 < share < 0.06
    characters = sum(map(len, parts[1])) / sum(map(len, documents))
    assert 0.03 < characters < 0.08


def test_a_document_s_own_hash_decides(monkeypatch):
    texts = [f"Document number {i} of the corpus, long enough to count." for i in range(400)]
    monkeypatch.setattr(corpus, "documents", lambda: texts)
    training, held_out = corpus.split_documents()
    monkeypatch.setattr(corpus, "documents", lambda: texts[200:][::-1])
    later_training, later_held_out = corpus.split_documents()
    assert set(later_training) <= set(training)
    assert set(later_held_out) <= set(held_out)
    assert 5 < len(held_out) < 45


SPLIT_OF_TOPICS = """
import hashlib
from exporter.presets import corpus
corpus._docstrings = lambda path: iter(())  # the topics alone: the library takes seconds
print(*(hashlib.sha256("|".join(part).encode()).hexdigest() for part in corpus.split_documents()))
"""


def test_another_process_splits_the_same():
    """With another hash seed: nothing may hang on the order of a set."""
    answers = set()
    for seed in ("1", "2"):
        result = subprocess.run(
            [sys.executable, "-c", SPLIT_OF_TOPICS],
            capture_output=True,
            text=True,
            check=True,
            env={
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
            },
        )
        answers.add(result.stdout)
    (answer,) = answers
    training, held_out = answer.split()
    assert training != held_out


def test_the_order_is_always_the_same(documents):
    assert documents[0] == next(corpus._sections(topics.topics[min(topics.topics)].strip()))
    first = [text for text in itertools.islice(corpus._all_documents(), 800) if len(text) >= 40]
    again = list(dict.fromkeys(first))
    assert again == documents[: len(again)]


def test_topics_are_cut_at_paragraphs():
    topic = "\n\n".join(f"Paragraph {i} " + "x" * 300 for i in range(20))
    pieces = list(corpus._sections(topic, most=1000))
    assert "\n\n".join(pieces) == topic
    assert all(len(piece) <= 1000 for piece in pieces)
    assert len(pieces) == 7

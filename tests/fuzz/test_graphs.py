"""A few seconds of the fuzzer of graphs, and what it has found."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("onnx")

from runtime.graph_check.graph_file import check_graph_file
from runtime.graph_check.wire_format import GraphFileError
from tests.fuzz.graph_mutations import mutate
from tests.fuzz.graph_process import Answer, Request
from tests.fuzz.graphs import HARM, Child, _folder, fuzz, line, main, toy_seeds


def test_mutations_end_in_an_error_or_run(capsys):
    counts = fuzz(toy_seeds(), 60, random.Random(0))
    assert counts["graphs"] == 60
    assert counts["refused"] + counts["accepted"] == 60
    assert counts["refused"] > 10
    assert counts["ran"] > 5
    assert [name for name in HARM if counts[name]] == [], line(counts)


def test_the_check_ends_in_its_own_error():
    seeds = toy_seeds()
    source = random.Random(1)
    found = set()
    for _ in range(120):
        seed = source.choice(seeds)
        try:
            check_graph_file(mutate(seed, seeds, source), seed.limits)
        except GraphFileError as error:
            found.add(str(error))
    assert len(found) > 50
    assert max(map(len, found)) < 3000


def test_the_command(capsys):
    assert main(["--toy", "--count", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 graphs, ")


@pytest.mark.parametrize(
    ("harm", "ended"),
    [("os._exit(3)", "crash"), ("os.kill(os.getpid(), 11)", "crash"), ("time.sleep(60)", "time"),
     ("(sys.stderr.write('std::bad_alloc'), sys.stderr.flush(), os.abort())", "memory")],
)  # fmt: skip
def test_harm_is_seen(tmp_path, monkeypatch, harm, ended):
    """In a process that does it in the place of loading a second graph."""
    seed = toy_seeds()[0]
    request = Request(_folder(tmp_path, 0, seed), seed.data, seed.limits, True)
    program = f"""
import os, sys, time
from tests.fuzz import graph_process as process
run, asked = process.run_graph, []
def harm(request):
    asked.append(1)
    return run(request) if len(asked) < 2 else {harm}
process.run_graph = harm
process.main()
"""
    monkeypatch.setattr("tests.fuzz.graphs.COMMAND", ("-c", program))
    monkeypatch.setattr("tests.fuzz.graphs.SECONDS", 3.0)
    child = Child(tmp_path, request)
    try:
        answer = child.ask(request)
        assert isinstance(answer, Answer)
        assert answer.ended == ended
    finally:
        child.close()

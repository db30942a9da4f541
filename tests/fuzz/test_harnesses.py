"""Every harness over its seeds and mutations of them, without atheris."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("h5py")

from tests.fuzz.__main__ import main
from tests.fuzz.harnesses import HARNESSES, MAX_INPUT, run_once

MUTATIONS = 200
MUTATIONS_IN_CHILDREN = 80  # of HDF5 files, which a new process looks at first


@pytest.mark.parametrize("name", HARNESSES)
def test_seeds_are_valid(tmp_path, name):
    for seed in HARNESSES[name].seeds():
        assert len(seed) <= MAX_INPUT
        assert run_once(HARNESSES[name], seed, tmp_path) is None


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "h5" else ()) for n in HARNESSES]
)
def test_mutations_end_in_the_readers_own_errors(tmp_path, name):
    harness = HARNESSES[name]
    source = random.Random(0)
    inputs = harness.seeds()
    refused = set()
    for _ in range(MUTATIONS_IN_CHILDREN if name == "h5" else MUTATIONS):
        data = harness.mutate(source.choice(inputs), source)
        error = run_once(harness, data, tmp_path)
        refused.add(str(error)[-40:])
        if error is None:  # goes on from what is still valid
            inputs.append(data)
    assert len(refused) > 10  # not all for one and the same reason


def test_the_list_of_harnesses(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(HARNESSES)


def test_an_input_is_replayed(tmp_path, capsys):
    (tmp_path / "input").write_bytes(b"{}")
    assert main(["index", "--replay", str(tmp_path / "input")]) == 0
    assert "is not an index of shards: KeyError('weight_map')" in capsys.readouterr().out

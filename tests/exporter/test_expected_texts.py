"""Texts stay what they were, alone and in any company: see `tests/data/make_expected_texts.py`."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime import Generator
from tests.data.make_expected_texts import (
    EXPECTED,
    PRECISIONS,
    PRESET,
    SAMPLERS,
    THREADS,
    cpu_kind,
    token_ids,
)

pytestmark = pytest.mark.slow
# Other kernels round differently, which decides a choice now and then.
SAME_ON_OTHER_CPUS = 0.9


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(EXPECTED.read_text("utf-8"))
    return values


@pytest.fixture(scope="module", params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def generator(precision: str, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    exporter = pytest.importorskip("exporter")
    bundle: Path = tmp_path_factory.mktemp("expected") / precision
    exporter.export_bundle(PRESET, bundle, precision=precision)
    return Generator.from_bundle(bundle, threads=THREADS, packed_weights=False)


def assert_same(found: list[list[int]], wanted: list[list[int]], expected: dict[str, Any]) -> None:
    same = sum(one == other for one, other in zip(found, wanted, strict=True))
    needed = len(wanted) if expected["cpu"] == cpu_kind() else SAME_ON_OTHER_CPUS * len(wanted)
    assert same >= needed, f"{same} of {len(wanted)} texts are as expected"


_ALONE: dict[tuple[str, str], list[list[int]]] = {}


def alone(generator: Generator, precision: str, name: str, expected: dict[str, Any]) -> list[list[int]]:
    """What each prompt gives alone on this machine, made once; sets the generator's sampler."""
    generator.compile(sampler=SAMPLERS[name])
    if (precision, name) not in _ALONE:
        pairs = zip(expected["prompts"], expected["max_lengths"], strict=True)
        _ALONE[precision, name] = [token_ids(generator, [text], length)[0] for text, length in pairs]
    return _ALONE[precision, name]


@pytest.mark.parametrize("name", SAMPLERS)
def test_alone(name: str, generator: Generator, precision: str, expected: dict[str, Any]) -> None:
    found = alone(generator, precision, name, expected)
    assert_same(found, expected["token_ids"][precision][name], expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_in_ragged_batches(
    name: str, generator: Generator, precision: str, expected: dict[str, Any]
) -> None:
    wanted = alone(generator, precision, name, expected)
    by_length: dict[int, dict[str, int]] = defaultdict(dict)
    for i, (text, length) in enumerate(zip(expected["prompts"], expected["max_lengths"], strict=True)):
        by_length[length].setdefault(text, i)  # the same prompt twice draws twice
    for length, places in by_length.items():
        texts = list(places)
        random.Random(length).shuffle(texts)
        for start in range(0, len(texts), 12):
            part = texts[start : start + 12]
            found = token_ids(generator, part, length)
            assert found == [wanted[places[text]] for text in part]


@pytest.mark.parametrize("name", SAMPLERS)
def test_from_8_threads(
    name: str, generator: Generator, precision: str, expected: dict[str, Any]
) -> None:
    wanted = alone(generator, precision, name, expected)
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(
            lambda text, length: token_ids(generator, [text], length)[0],
            expected["prompts"],
            expected["max_lengths"],
        )
        assert list(found) == wanted


@pytest.mark.parametrize("name", SAMPLERS)
def test_of_the_keras_model(name: str, expected: dict[str, Any]) -> None:
    model = pytest.importorskip("exporter").OPTCausalLM.from_preset(PRESET)
    model.compile(sampler=SAMPLERS[name])
    wanted = expected["token_ids"]["keras"][name]
    pairs = zip(expected["prompts"], expected["max_lengths"], strict=True)
    found = [
        token_ids(model, [text], length)[0] for (text, length), _ in zip(pairs, wanted, strict=False)
    ]
    assert_same(found, wanted, expected)

"""Samplers of one's own, as the documentation of `Sampler` shows them."""

from __future__ import annotations

import inspect
import itertools
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from runtime import Generator, samplers
from runtime.engine.search.sampling import row_generators
from runtime.samplers import Sampler, TopKSampler
from tests.runtime.toy import CASES

TOKENS: dict[str, Any] = {"max_length": 14, "stop_token_ids": None}


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    """The classes of the docstring's examples."""
    names: dict[str, Any] = {**vars(samplers), "np": np}
    for text in inspect.cleandoc(Sampler.__doc__ or "").split("::\n\n")[1:]:
        lines = text.split("\n")
        code = itertools.takewhile(lambda line: not line or line.startswith("    "), lines)
        exec(textwrap.dedent("\n".join(code)), names)
    return names


def example(documented: dict[str, Any], name: str) -> type[Any]:
    found = documented[name]
    assert issubclass(found, Sampler)
    return type(name, (found,), {})


def test_from_probabilities(documented: dict[str, Any], generator: Generator) -> None:
    generator.compile("greedy")
    (usual,) = generator.generate_results("The quick", **TOKENS)
    forbidden = usual.token_ids[:3]
    sampler = example(documented, "WithoutTokens")(forbidden=forbidden)
    generator.compile(sampler)
    (result,) = generator.generate_results("The quick", **TOKENS)
    assert not set(forbidden) & set(result.token_ids)
    logits = np.array(CASES[2]["logits_after_prompt"])
    logits[list(forbidden)] = -np.inf
    assert result.token_ids[0] == logits.argmax()
    assert sampler.get_config() == {"forbidden": list(forbidden), "temperature": 1.0, "seed": None}


def test_from_logits(documented: dict[str, Any], generator: Generator) -> None:
    cls = example(documented, "MinPSampler")
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))
    sampler, (stream,) = cls(share=0.31), row_generators(0, [()])
    picks = np.array([sampler.sample(logits, [stream])[0] for _ in range(2_000)])
    assert np.unique(picks).tolist() == [0, 1]
    assert abs((picks == 0).mean() - 0.5 / 0.8) < 0.05
    generator.compile(cls(seed=1))
    first = generator.generate(["The quick", "t"], **TOKENS)
    assert generator.generate(["The quick", "t"], **TOKENS) == first
    generator.compile(cls(seed=2))
    assert generator.generate(["The quick", "t"], **TOKENS) != first
    again = cls.from_config(sampler.get_config())
    assert (again.share, again.temperature, again.seed) == (0.31, 1.0, None)


class SecondBest(Sampler):
    """Looks at what it is given."""

    def get_next_token(
        self, probabilities: np.ndarray, generators: Sequence[np.random.Generator]
    ) -> np.ndarray:
        assert np.abs(probabilities.sum(axis=-1) - 1).max() < 1e-5
        assert len(generators) == len(probabilities)
        return np.argsort(probabilities, axis=-1)[:, -2]


def test_what_a_sampler_is_given(generator: Generator) -> None:
    generator.compile(SecondBest())
    (result,) = generator.generate_results("The quick", max_length=5, stop_token_ids=None)
    case = CASES[2]
    assert case["text"] == "The quick"
    assert result.token_ids == (int(np.argsort(case["logits_after_prompt"])[-2]),)


def test_the_base_class_has_probabilities_at_its_temperature() -> None:
    class Recording(Sampler):
        def get_next_token(self, probabilities: Any, generators: Any) -> Any:
            self.seen = probabilities
            return np.zeros(len(probabilities), np.int64)

    sampler = Recording(temperature=0.5)
    sampler.sample(np.log(np.array([[1.0, 2.0]], np.float32)), row_generators(0, [()]))
    assert np.abs(sampler.seen - [[0.2, 0.8]]).max() < 1e-6


def test_a_sampler_without_a_method(generator: Generator) -> None:
    class Nothing(Sampler):
        pass

    generator.compile(Nothing())
    with pytest.raises(TypeError, match="Nothing must override get_next_token or sample"):
        generator.generate("t")


@pytest.mark.parametrize(
    "choice", [[300, 1], [-1, 1], [1], [1, 2, 3], [[1], [2]], [1.0, 2.0], 5], ids=str
)
def test_what_a_sampler_may_not_return(generator: Generator, choice: Any) -> None:
    class Wrong(TopKSampler):
        def sample(self, logits: Any, generators: Any) -> Any:
            return choice

    generator.compile(Wrong())
    message = "Wrong must return one token id a row, 2 whole numbers from 0 to 299; got"
    with pytest.raises(ValueError, match=message):
        generator.generate(["t", "a"])


def test_a_sampler_may_return_a_list(generator: Generator) -> None:
    class Listing(Sampler):
        def sample(self, logits: Any, generators: Any) -> Any:
            return [50] * len(logits)

    generator.compile(Listing())
    (result,) = generator.generate_results("t", max_length=4)
    assert result.token_ids == (50, 50)

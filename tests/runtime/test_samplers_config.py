"""Samplers by name, by configuration and by Keras's own configuration; what they refuse."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from runtime import samplers
from runtime.samplers import (
    BeamSampler,
    ContrastiveSampler,
    GreedySampler,
    RandomSampler,
    Sampler,
    TopKSampler,
    TopPSampler,
)

CLASSES = {
    "greedy": GreedySampler,
    "random": RandomSampler,
    "top_k": TopKSampler,
    "top_p": TopPSampler,
    "beam": BeamSampler,
    "contrastive": ContrastiveSampler,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 1.0},
    "random": {"temperature": 1.0, "seed": None},
    "top_k": {"k": 5, "temperature": 1.0, "seed": None},
    "top_p": {"p": 0.1, "k": None, "temperature": 1.0, "seed": None},
    "beam": {"num_beams": 5, "return_all_beams": False, "temperature": 1.0},
    "contrastive": {"k": 5, "alpha": 0.6, "temperature": 1.0},
}
OTHERS: dict[str, Sampler] = {
    "greedy": GreedySampler(temperature=0.5),
    "random": RandomSampler(3, 0.5),
    "top_k": TopKSampler(7, 3, 0.5),
    "top_p": TopPSampler(0.9, 40, 3, 0.5),
    "beam": BeamSampler(3, True, 0.5),
    "contrastive": ContrastiveSampler(7, 0.3, 0.5),
}


def test_the_names() -> None:
    assert tuple(CLASSES) == samplers.NAMES
    for name, cls in CLASSES.items():
        assert type(samplers.get(name)) is cls
        assert type(samplers.get(name.title())) is cls


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_are_those_of_keras(name: str) -> None:
    assert samplers.get(name).get_config() == DEFAULTS[name]


@pytest.mark.parametrize("name", CLASSES)
def test_a_configuration_goes_through_json(name: str) -> None:
    for sampler in (samplers.get(name), OTHERS[name]):
        config = samplers.serialize(sampler)
        assert config == {"class_name": CLASSES[name].__name__, "config": sampler.get_config()}
        again = samplers.deserialize(json.loads(json.dumps(config)))
        assert type(again) is CLASSES[name]
        assert again.get_config() == sampler.get_config()
    assert OTHERS[name].get_config() != DEFAULTS[name]
    assert set(OTHERS[name].get_config()) == set(samplers.parameters(CLASSES[name]))


def test_numpy_numbers_become_plain_ones() -> None:
    sampler = TopKSampler(k=np.int64(4), seed=np.int64(9), temperature=2)  # type: ignore[arg-type]
    text = json.dumps(samplers.serialize(sampler)["config"])
    assert text == '{"k": 4, "temperature": 2.0, "seed": 9}'


def test_get_takes_samplers_and_configurations() -> None:
    sampler = TopKSampler(k=2)
    assert samplers.get(sampler) is sampler
    for name in ("top_k", "TopKSampler", "keras_hub>TopKSampler", "keras_nlp>TopKSampler"):
        found = samplers.get({"class_name": name, "config": {"k": 9}})
        assert isinstance(found, TopKSampler)
        assert (found.k, found.temperature, found.seed) == (9, 1.0, None)
    assert type(samplers.get({"class_name": "greedy"})) is GreedySampler


def test_a_configuration_as_keras_hub_writes_it() -> None:
    found = samplers.get(
        {
            "module": "keras_hub.src.samplers.top_p_sampler",
            "class_name": "TopPSampler",
            "config": {"temperature": 0.7, "p": 0.9, "k": 100, "seed": 42},
            "registered_name": "keras_hub>TopPSampler",
        }
    )
    assert isinstance(found, TopPSampler)
    assert (found.temperature, found.p, found.k, found.seed) == (0.7, 0.9, 100, 42)


@pytest.mark.parametrize("identifier", ["best", "", "TopKSampler", None, 5, ["greedy"], TopKSampler])
def test_unknown_names(identifier: Any) -> None:
    message = (
        r"unknown sampler .* choose one of "
        r"\['beam', 'contrastive', 'greedy', 'random', 'top_k', 'top_p'\]"
    )
    with pytest.raises(ValueError, match=message):
        samplers.get(identifier)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"class_name": "Beam", "config": {}},
        {"class_name": "keras_hub>SpeculativeSampler", "config": {}},
        {"class_name": None},
        {"class_name": ["greedy"]},
        {"class_name": "top_k", "config": [5]},
        {"class_name": "os.system", "config": {}},
    ],
)
def test_unknown_configurations(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown sampler configuration .* class_name must be one of"):
        samplers.get(config)


@pytest.mark.parametrize(("config", "unknown"), [({"kk": 3}, "kk"), ({"k": 3, "beams": 2}, "beams")])
def test_unknown_values_of_a_configuration(config: dict[str, Any], unknown: str) -> None:
    message = rf"the sampler top_k does not take \['{unknown}'\]; it takes k, seed, temperature"
    with pytest.raises(ValueError, match=message):
        samplers.get({"class_name": "top_k", "config": config})


@pytest.mark.parametrize("k", [0, -1, 2.0, "5", None, True])
def test_bad_k(k: Any) -> None:
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, got"):
        TopKSampler(k=k)


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan, "1", None, True])
@pytest.mark.parametrize("cls", CLASSES.values())
def test_bad_temperature(cls: Any, temperature: Any) -> None:
    with pytest.raises(ValueError, match="temperature must be a number above 0, got"):
        cls(temperature=temperature)


def test_a_temperature_may_be_any_kind_of_number() -> None:
    for value in (2, np.float32(2), np.float64(2), np.int64(2)):
        assert TopKSampler(temperature=value).temperature == 2.0  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True])
@pytest.mark.parametrize("cls", [TopKSampler, TopPSampler, RandomSampler])
def test_bad_seed(cls: Any, seed: Any) -> None:
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0 or None, got"):
        cls(seed=seed)

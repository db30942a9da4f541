"""Ways to choose the next token; see `Sampler` for writing one's own.

| name | class | after |
|---|---|---|
| `greedy` | `GreedySampler` | |
| `random` | `RandomSampler` | |
| `top_k` | `TopKSampler` | Fan et al., 2018, https://arxiv.org/abs/1805.04833 |
| `top_p` | `TopPSampler` | Holtzman et al., 2019, https://arxiv.org/abs/1904.09751 |
| `beam` | `BeamSampler` | Sutskever et al., 2014, https://arxiv.org/abs/1409.3215 |
| `contrastive` | `ContrastiveSampler` | Su et al., 2022, https://arxiv.org/abs/2202.06417 |

Constructors take the arguments of `keras_hub.samplers`, in its order and with its defaults.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from graphs.shown import shown
from runtime.probabilities import draw, exponentials, softmax
from runtime.samplers.beam import BeamSampler
from runtime.samplers.contrastive import ContrastiveSampler
from runtime.samplers.greedy import GreedySampler
from runtime.samplers.random import RandomSampler
from runtime.samplers.sampler import Sampler
from runtime.samplers.top_k import TopKSampler
from runtime.samplers.top_p import TopPSampler

__all__ = [
    "NAMES",
    "BeamSampler",
    "ContrastiveSampler",
    "GreedySampler",
    "RandomSampler",
    "Sampler",
    "TopKSampler",
    "TopPSampler",
    "deserialize",
    "draw",
    "exponentials",
    "find_class",
    "get",
    "parameters",
    "serialize",
    "softmax",
]

_CLASSES: dict[str, type[Sampler]] = {
    "greedy": GreedySampler,
    "random": RandomSampler,
    "top_k": TopKSampler,
    "top_p": TopPSampler,
    "beam": BeamSampler,
    "contrastive": ContrastiveSampler,
}

NAMES = tuple(_CLASSES)


def find_class(name: str) -> type[Sampler] | None:
    """The built-in sampler of a short name, a class name or Keras's `keras_hub>` name, or `None`."""
    name = name.removeprefix("keras_hub>").removeprefix("keras_nlp>")
    return {**_CLASSES, **{cls.__name__: cls for cls in _CLASSES.values()}}.get(name)


def parameters(cls: type[Sampler]) -> tuple[str, ...]:
    """Names of a sampler's constructor arguments."""
    return tuple(inspect.signature(cls).parameters)


def serialize(sampler: Sampler) -> dict[str, object]:
    """A sampler as plain JSON values: its class name and configuration."""
    return {"class_name": type(sampler).__name__, "config": sampler.get_config()}


def deserialize(config: Mapping[str, object]) -> Sampler:
    """The sampler that `serialize` described.

    Its class may also be given by short name, and the description may be that of
    `keras_hub.samplers.serialize`.

    Raises:
        ValueError: if the class is not one of the built-in samplers, or does not take a value.
    """
    name = config.get("class_name")
    values = config.get("config", {})
    cls = find_class(name) if isinstance(name, str) else None
    if cls is None or not isinstance(values, Mapping):
        classes = sorted([*_CLASSES, *(cls.__name__ for cls in _CLASSES.values())])
        raise ValueError(
            f"unknown sampler configuration {shown(dict(config))}; class_name must be one of {classes}"
        )
    unknown = [key for key in values if key not in parameters(cls)]
    if unknown:
        raise ValueError(
            f"the sampler {name} does not take {shown(unknown)}; it takes {', '.join(parameters(cls))}"
        )
    return cls.from_config(values)


def get(identifier: str | Sampler | Mapping[str, object]) -> Sampler:
    """A sampler by name (`"greedy"`, `"top_p"`, …), by instance or by serialized configuration.

    Raises:
        ValueError: if there is no such sampler.
    """
    if isinstance(identifier, Sampler):
        return identifier
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    if isinstance(identifier, str) and identifier.lower() in _CLASSES:
        return _CLASSES[identifier.lower()]()
    raise ValueError(f"unknown sampler {shown(identifier)}; choose one of {sorted(_CLASSES)}")

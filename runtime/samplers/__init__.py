"""Ways to choose the next token; see `Sampler` for writing one's own."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.samplers.greedy import GreedySampler
from runtime.samplers.sampler import Sampler
from runtime.samplers.top_k import TopKSampler

__all__ = ["GreedySampler", "Sampler", "TopKSampler", "deserialize", "get", "serialize"]

_CLASSES: dict[str, type[Sampler]] = {"greedy": GreedySampler, "top_k": TopKSampler}


def serialize(sampler: Sampler) -> dict[str, object]:
    """A sampler as plain JSON values: its class name and configuration."""
    return {"class_name": type(sampler).__name__, "config": sampler.get_config()}


def deserialize(config: Mapping[str, object]) -> Sampler:
    """The sampler that `serialize` described; its class may also be given by short name.

    Raises:
        ValueError: if the class is not one of the built-in samplers.
    """
    name = config.get("class_name")
    classes = {**_CLASSES, **{cls.__name__: cls for cls in _CLASSES.values()}}
    values = config.get("config", {})
    if not isinstance(name, str) or name not in classes or not isinstance(values, Mapping):
        raise ValueError(
            f"unknown sampler configuration {dict(config)!r}; class_name must be one of "
            f"{sorted(classes)}"
        )
    try:
        return classes[name].from_config(values)
    except TypeError:
        raise ValueError(f"the sampler {name} takes not all of {sorted(values)}") from None


def get(identifier: str | Sampler | Mapping[str, object]) -> Sampler:
    """A sampler by name (`"greedy"`, `"top_k"`), by instance or by serialized configuration.

    Raises:
        ValueError: if there is no such sampler.
    """
    if isinstance(identifier, Sampler):
        return identifier
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    if isinstance(identifier, str) and identifier.lower() in _CLASSES:
        return _CLASSES[identifier.lower()]()
    raise ValueError(f"unknown sampler {identifier!r}; choose one of {sorted(_CLASSES)}")

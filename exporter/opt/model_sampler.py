"""The sampler of a Keras model: how it is saved, and where it draws from without a seed."""

from __future__ import annotations

import copy
import random
from typing import Any

from exporter.opt.keras_backend import keras
from runtime import samplers
from runtime.samplers import Sampler


def serialize(sampler: Sampler) -> dict[str, Any]:
    """A built-in sampler by its class name, one of the user's own as Keras's custom objects."""
    if samplers.find_class(type(sampler).__name__) is type(sampler):
        return samplers.serialize(sampler)
    return keras.saving.serialize_keras_object(sampler)


def deserialize(config: dict[str, Any]) -> Sampler:
    """The sampler that `serialize` described."""
    if "registered_name" in config:  # as Keras serialized it
        return keras.saving.deserialize_keras_object(config)
    return samplers.deserialize(config)


def seeded(sampler: Sampler) -> Sampler:
    """The sampler; one without a seed as a copy with a seed from where Keras draws its own.

    That is Python's `random`, so that `keras.utils.set_random_seed` makes generation repeatable.
    """
    if sampler.seed is not None:
        return sampler
    seeded = copy.copy(sampler)
    seeded.seed = random.getrandbits(128)
    return seeded

"""Imports Keras on the TensorFlow backend; every module here takes `keras` from this one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
from keras.src.backend.common import global_state

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"exporter needs Keras on TensorFlow, but Keras uses {keras.backend.backend()!r}; "
        "set KERAS_BACKEND=tensorflow before Keras is first imported"
    )

_WAITING = "uninitialized_variables"  # Keras's list of variables that a scope's end gives values to

__all__ = ["keras", "without_values"]


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Variables that are made within it have shapes and no values, now and later.

    Keras keeps a list of them, and gives all of them values when another scope ends, that of
    `stateless_call` for one: of a large model more than there is memory. So they leave that list.
    """
    before = list(global_state.get_global_attribute(_WAITING) or ())
    with keras.StatelessScope(initialize_variables=False):
        yield
    global_state.set_global_attribute(_WAITING, before)

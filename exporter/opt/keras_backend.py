"""Imports Keras on the TensorFlow backend; every module here takes `keras` from this one."""

from __future__ import annotations

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"exporter needs Keras on TensorFlow, but Keras uses {keras.backend.backend()!r}; "
        "set KERAS_BACKEND=tensorflow before Keras is first imported"
    )

__all__ = ["keras"]

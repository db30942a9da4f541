"""Serve-time environments go without the tests that import the exporter."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("keras") is None:
    collect_ignore = ["test_round_trips.py"]
    collect_ignore_glob = ["test_keras_guides_*.py"]


@pytest.fixture(
    params=["exporter", pytest.param("keras_hub", marks=[pytest.mark.reference, pytest.mark.slow])]
)
def family(request):
    """This project's classes and, with `--slow`, keras-hub's."""
    from tests.conformance.guide_models import Family

    return Family.of(request.param)


@pytest.fixture
def keras_defaults():
    """Keras's dtype policy and float type as they were, after a test that sets them."""
    import keras

    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)

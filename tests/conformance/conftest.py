"""Serve-time environments go without the tests that import the exporter."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("keras") is None:
    collect_ignore = ["test_round_trips.py"]

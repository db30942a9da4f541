"""Which tests of `bench` a serve-time environment can run."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("keras") is None:
    collect_ignore = [
        "test_checkpoint_set.py",
        "test_compare.py",
        "test_dynamic_int8.py",
        "test_gpu.py",
        "test_gpu_table.py",
        "test_make_checkpoint.py",
        "test_outliers.py",
        "test_startup.py",
    ]

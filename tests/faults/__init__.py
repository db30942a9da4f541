"""Faults on purpose, for long runs as scripts and for seconds as tests."""

import os

# NumPy's pool would be a second thread, and forking is safe with one: see `exports`.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

"""Fuzzers of everything that reads files from strangers; see `python -m tests.fuzz --list`."""

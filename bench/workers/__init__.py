"""One process for each system that `bench.compare` measures.

A worker's module holds `load`, which turns a checkpoint into a function that generates; `protocol` does
the rest, the same for all. Workers import nothing of this project but files of this folder,
`graphs.versions` and what they measure, so that each can run in an environment of its own.
"""

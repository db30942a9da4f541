"""Measuring: `opt-bench` for one bundle, comparison with other systems, perplexity.

`opt_bench`, `perplexity` and what they import need only what serving needs; `lm_eval` also needs the
extra `eval`. `make_checkpoint` needs the exporter; `compare` also needs the systems that it compares
with, each in a process of its own.
"""

try:
    from runtime.own_packages import check_packages  # first, see there
except ModuleNotFoundError:
    import exporter  # noqa: F401  (whose error says what is in the way)

    raise
check_packages("exporter", "graphs")

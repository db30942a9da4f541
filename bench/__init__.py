"""Measuring: `opt-bench` for one bundle, comparison with other systems, perplexity.

`opt_bench`, `perplexity` and what they import need only what serving needs. `make_checkpoint` needs the
exporter; `compare` also needs the systems that it compares with, each in a process of its own.
"""

from opt_onnx_packages import check_packages

check_packages("exporter", "graphs", "runtime")

"""The commands: scripts that clean search paths before Python starts; entry points for Windows."""

import sys

from setuptools import setup

if sys.platform == "win32":
    setup(
        entry_points={
            "console_scripts": [
                "opt-export = exporter.cli:main",
                "opt-generate = runtime.cli:main",
                "opt-bench = bench.opt_bench:main",
            ]
        }
    )
else:
    setup(scripts=["commands/opt-export", "commands/opt-generate", "commands/opt-bench"])

"""What serving does under load: many threads at once, and for long.

Each module is a command that prints a table and exits with 1 where a bound is broken:
`python -m tests.load.storm BUNDLE`, `python -m tests.load.soak BUNDLE`.
"""

"""Measurements of the library; each module is a command, ``python -m benchmarks.<name>``."""

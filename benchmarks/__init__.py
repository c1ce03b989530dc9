"""Benchmarks of the method: ``python -m benchmarks --help``."""

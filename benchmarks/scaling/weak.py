"""Communication against compute, the same work a rank on more and more ranks.

Fixed work a rank: N ranks do N times the work of one between two messages.
Every run is split into phases on every rank. Writes weak.jsonl, a row for every
rank, repetition and phase, and weak.md; runs that are in weak.jsonl are not run again.
"""

from __future__ import annotations

import argparse

from benchmarks.scaling import command as scaling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    scaling.add_arguments(parser, "weak")


def run(parsed: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    return scaling.run(parsed, "weak")

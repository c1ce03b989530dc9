"""Communication against compute, the same work on more and more ranks.

Fixed data and work: N ranks divide the local steps or the minibatch of one.
Every run is split into phases on every rank. Writes strong.jsonl, a row for every
rank, repetition and phase, and strong.md; runs that are in strong.jsonl are not run again.
"""

from __future__ import annotations

import argparse

from benchmarks.scaling import command as scaling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    scaling.add_arguments(parser, "strong")


def run(parsed: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    return scaling.run(parsed, "strong")

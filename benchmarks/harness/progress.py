"""Progress of a benchmark, and the loop over what is not measured yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from benchmarks.harness.jobs import RunFailed
from benchmarks.harness.results import Results, Row, origin


class Progress:
    """A line for people as each of a number of runs ends."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._start = total, 0, time.monotonic()

    def skip(self) -> None:
        """Another run had been made before."""
        self._done += 1

    def say(self, text: str) -> None:
        """Another run has ended, well or badly."""
        self._done += 1
        minutes, seconds = divmod(round(time.monotonic() - self._start), 60)
        print(f"[{self._done}/{self._total}, {minutes}:{seconds:02d} min] {text}", flush=True)


def measure_missing(
    cases: Sequence[tuple[Row, str]],
    results: Results,
    measure: Callable[[Row], tuple[Row, str]],
) -> int:
    """Measure what the results do not have yet, and write each down as it ends.

    Args:
        cases: settings, and how they are named. measure: what came out of settings, and that in a
            few words; it may raise RunFailed.

    Returns:
        How many failed.
    """
    progress, failures = Progress(len(cases)), 0
    for settings, name in cases:
        if results.get(settings) is not None:
            progress.skip()
            continue
        try:
            row, what = measure(settings)
        except RunFailed as error:
            failures += 1
            progress.say(f"{name}: failed: {error}")
            continue
        results.add(settings, {**row, **origin()})
        progress.say(f"{name}: {what}")
    return failures

"""Progress of a benchmark."""

from __future__ import annotations

import time


class Progress:
    """A line for people as each of a number of runs ends."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._start = total, 0, time.monotonic()

    def say(self, text: str) -> None:
        """Another run has ended, well or badly."""
        self._done += 1
        minutes, seconds = divmod(round(time.monotonic() - self._start), 60)
        print(f"[{self._done}/{self._total}, {minutes}:{seconds:02d} min] {text}", flush=True)

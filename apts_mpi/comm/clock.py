"""Where a rank's time goes: every moment belongs to one phase, the innermost that is open."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

# data: drawing minibatches. gradient: forward and backward passes. algebra: what an optimizer does
# besides. wait: for the slowest rank. allreduce, broadcast: transfer. evaluation: on test data.
PHASES = ("data", "gradient", "algebra", "wait", "allreduce", "broadcast", "evaluation", "other")
COMMUNICATION = ("allreduce", "broadcast")
BETWEEN = ("checkpoint",)  # outer iterations; benchmarks, which measure these, write none
_MOST_SPANS = 1_000_000  # of a rank, some 100 MB


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a trace: what, in which phase, from when to when on this rank's clock in seconds.

    ``nbytes`` is the payload of a message, 0 of anything else.
    """

    label: str
    phase: str
    start: float
    end: float
    nbytes: int = 0


class Clock:
    """Seconds of this rank by phase; what is in no phase is "other".

    Args:
        on: False measures nothing, to find out what measuring costs.

    Attributes:
        seconds: by phase, since the clock was made. spans: of a trace, None where none is wanted.
        dropped: spans that were more than a trace keeps.
    """

    def __init__(self, *, on: bool = True) -> None:
        self.on = on
        self.seconds = dict.fromkeys((*PHASES, *BETWEEN), 0.0)
        self.spans: list[Span] | None = None
        self.dropped = 0
        self._open: list[str] = ["other"]
        self._since = time.perf_counter()
        self._lap = dict(self.seconds)

    def trace(self) -> None:
        """Keep a span of every phase from now on."""
        if self.on:
            self.spans = []

    def switch(self, on: bool) -> None:
        """Measure from now on, or not; outside of all phases, and on all ranks alike."""
        self.on = on
        self._since = time.perf_counter()

    def phase(self, name: str, label: str = "", nbytes: int = 0) -> _Phase:
        """A context whose time is the phase's, but for that of contexts within.

        Args:
            name: one of PHASES or BETWEEN. label, nbytes: for the trace; the default label is the
                name.
        """
        return _Phase(self, name, label, nbytes)

    def lap(self) -> dict[str, float]:
        """Seconds by phase since the last lap."""
        self._switch()
        last, self._lap = self._lap, dict(self.seconds)
        return {name: seconds - last[name] for name, seconds in self._lap.items()}

    def _switch(self) -> float:
        """Book the time until now on the phase that is open; returns now."""
        now = time.perf_counter()
        if self.on:
            self.seconds[self._open[-1]] += now - self._since
            self._since = now
        return now


class _Phase:
    __slots__ = ("_clock", "_label", "_name", "_nbytes", "_start")

    def __init__(self, clock: Clock, name: str, label: str, nbytes: int) -> None:
        self._clock, self._name, self._label, self._nbytes = clock, name, label, nbytes

    def __enter__(self) -> None:
        clock = self._clock
        if clock.on:
            self._start = clock._switch()
            clock._open.append(self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        clock = self._clock
        if not clock.on:
            return
        end = clock._switch()
        clock._open.pop()
        if clock.spans is not None:
            if len(clock.spans) < _MOST_SPANS:
                span = Span(self._label or self._name, self._name, self._start, end, self._nbytes)
                clock.spans.append(span)
            else:
                clock.dropped += 1

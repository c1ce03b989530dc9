"""What a run shows to people as it goes: a progress line and warnings, from rank 0 alone."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from apts_mpi.comm.communicator import Comm

JUDGED = {"val": "validation", "test": "test"}  # what splits are called for people
_REDRAW = 0.1  # seconds between two drawings of the line on a terminal
_FIRST, _GROWTH, _LONGEST = 1.0, 1.5, 60.0  # seconds between whole lines elsewhere
_OVER = "\r\033[K"  # to the start of a terminal's line, which is erased


class Console:
    """Lines for people, from rank 0 alone.

    On a terminal the progress line is rewritten in place. In batch files and under mpirun, which
    shows no terminal to the ranks, it is a whole line every so often: a second at first, then
    ever longer, at most a minute.

    Args:
        comm: the ranks. now: seconds of a clock.
    """

    def __init__(self, comm: Comm, now: Callable[[], float] = time.monotonic) -> None:
        self._speaks, self._now = comm.rank == 0, now
        self._terminal = self._speaks and sys.stderr.isatty()
        self._shown = ""  # the line on the terminal
        self._last: dict[str, Any] = {}  # what the evaluations gave, for rows that have none
        self._begun = self._next = self._samples = 0.0
        self._interval, self._part = _FIRST, 0.0  # the part that was done before

    def say(self, line: str) -> None:
        """One line on standard error, above the progress line of a terminal."""
        if self._speaks:
            _write(f"{_OVER if self._shown else ''}{line}\n{self._shown}")

    def start(
        self, part: float, known: Mapping[str, Any], row: Mapping[str, Any] | None = None
    ) -> None:
        """Progress begins, with that part of the run done, 0 to 1, and those last figures.

        Args:
            row: that is still to be shown, of an iteration that is in that part.
        """
        self._last, self._begun = {**known}, self._now()
        self._part, self._samples = part, 0.0
        self._next, self._interval = self._begun, _FIRST  # the first line at once
        if row is not None:  # which does not tell how fast the run advances
            self._samples -= row["gradient_evaluations"]
            self._next += _FIRST

    def progress(self, row: dict[str, Any], part: float, *, last: bool = False) -> None:
        """Show a row of the metrics, if it is time to.

        Args:
            part: of the run that is done, 0 to 1. last: whether the run ends here.
        """
        self._samples += row["gradient_evaluations"]
        known = {name: value for name, value in row.items() if name.startswith(tuple(JUDGED))}
        self._last = known or self._last
        now = self._now()
        if not self._speaks or (now < self._next and not last):
            return
        line = self._line({**row, **self._last}, part, now - self._begun)
        if self._terminal:
            self._next = now + _REDRAW
            self._shown = line[: shutil.get_terminal_size().columns - 1]
            _write(_OVER + self._shown)
        else:
            self._next = now + self._interval
            self._interval = min(self._interval * _GROWTH, _LONGEST)
            _write(f"{line}\n")

    def _line(self, row: dict[str, Any], part: float, elapsed: float) -> str:
        done = part - self._part
        left = elapsed * (1.0 - part) / done if done > 0.0 else 0.0
        radius = row.get("radius")
        parts = [
            f"{100 * part:3.0f} %",
            f"epoch {row['passes']:.1f}",
            f"{_clock(elapsed)} elapsed, {_clock(left)} left",
            f"{self._samples / elapsed if elapsed else 0.0:,.0f} samples/s",
            f"loss {shown_loss(row, 'loss')}",
            *(_judged(row, split) for split in JUDGED if f"{split}_loss" in row),
            *([f"radius {radius:.1e}"] if radius is not None else []),
        ]
        return "  ".join(parts)

    def stop(self) -> None:
        """Progress ends; the line on a terminal stays."""
        if self._shown:
            _write("\n")
            self._shown = ""


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _clock(seconds: float) -> str:
    """A time as 0:05, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def shown_loss(figures: dict[str, Any], name: str) -> str:
    """A loss in text; that of a regression may be of any size, as its targets are."""
    value = figures[name]
    if value is None:
        return "-"
    regression = any(each.endswith("r2") for each in figures)
    return f"{value:.5g}" if regression else f"{value:.5f}"


def _judged(row: dict[str, Any], split: str) -> str:
    """What a row says of a split."""
    name, loss = JUDGED[split], shown_loss(row, f"{split}_loss")
    if row.get(f"{split}_perplexity") is not None:
        return f"{name} loss {loss}  perplexity {row[f'{split}_perplexity']:.2f}"
    if row.get(f"{split}_accuracy") is not None:
        return f"{name} accuracy {row[f'{split}_accuracy']:.4f}"
    r2 = row.get(f"{split}_r2")
    return f"{name} loss {loss}" + (f"  R2 {r2:.4f}" if r2 is not None else "")


def judged(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of an evaluation for people, each with its name, losses left out.

    What is best is only reported for the validation samples: chosen by the test samples it would be
    better than the network is on others.
    """
    rows, epoch = [], figures.get("best_passes")
    for split, name in JUDGED.items():
        for kind, text, digits in (
            ("accuracy", "accuracy", 4),
            ("perplexity", "perplexity", 3),
            ("r2", "R2", 4),
        ):
            value, best = figures.get(f"{split}_{kind}"), figures.get(f"best_{split}_{kind}")
            if value is None:
                continue
            figure = f"{value:.{digits}f}"
            if best is not None and epoch is not None:
                figure += f"  (best {best:.{digits}f}, epoch {epoch:.1f})"
            rows.append((f"{name} {text}", figure))
    if None not in (figures.get("best_val_loss"), epoch):
        loss = shown_loss(figures, "best_val_loss")
        rows.append(("best validation loss", f"{loss}, epoch {epoch:.1f}"))
    return rows


def aligned(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what is said of them, in two columns."""
    known = list(rows)
    width = max(len(name) for name, _ in known)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in known)


class RankLog(logging.Handler):
    """The package's warnings as one line each, from rank 0 alone: all ranks see the same ones."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Say the record."""
        self._console.say(f"{record.levelname.lower()}: {record.getMessage()}")

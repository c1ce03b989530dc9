"""Markdown: tables, spans over seeds, and the set-up behind a result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]], *, text: int) -> str:
    """A table whose columns line up as plain text too: the first ``text`` left, numbers right."""
    body = [[str(cell) for cell in row] for row in rows]
    # A rule needs two characters at least.
    widths = [max(2, *map(len, column)) for column in zip(header, *body, strict=True)]

    def line(cells: Sequence[str]) -> str:
        pairs = enumerate(zip(cells, widths, strict=True))
        return " | ".join(c.ljust(w) if i < text else c.rjust(w) for i, (c, w) in pairs)

    rule = ["-" * (w - 1) + ("-" if i < text else ":") for i, w in enumerate(widths)]
    return "\n".join(f"| {line(row)} |" for row in (header, rule, *body))


def span(values: Sequence[float], form: str = ".1f") -> str:
    """Mean and, in brackets, least and largest: ``94.3 [93.1, 95.0]``."""
    if not values:
        return "-"
    return f"{fmean(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def quartiles(values: Sequence[float]) -> str:
    """Median and, in brackets, quartiles: ``94.3 [93.1, 95.0]``."""
    low, middle, high = values
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"


def met(good: bool) -> str:
    """Whether a goal is."""
    return "met" if good else "missed"


def setup(rows: Sequence[dict[str, Any]], between: str = "") -> str:
    """One paragraph: versions, cores, commits and dates of the runs behind a table.

    Args:
        between: behind the cores; without it, the threads per rank.
    """

    def all_of(name: str) -> str:
        return ", ".join(sorted({str(row[name]) for row in rows}))

    threads = {str(row.get("threads_per_rank", row.get("threads", 1))) for row in rows}

    versions = sorted({f"{k} {v}" for row in rows for k, v in row["versions"].items()})
    more = f"; {between}" if between else f", threads per rank {', '.join(sorted(threads))}"
    return (
        f"Set-up: {'; '.join(versions)}; cores {all_of('cores')}{more}; "
        f"commit {all_of('commit')}; {all_of('date')}."
    )


def foot(rows: Sequence[dict[str, Any]], repeat: str, *, run: str = "") -> str:
    """The set-up of the rows, and how to measure them again.

    Args:
        repeat: the command with its options, but for --fresh. run: of the program, one of those
            that were made.
    """
    one = f"A run, here the last: `mpirun -n N python -m apts_mpi {run}`.\n\n" if run else ""
    return f"{one}{setup(rows)} Repeat: `python -m benchmarks {repeat} --fresh`."


def write(path: Path, *parts: str) -> None:
    """Write a Markdown file from its paragraphs, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"written: {path}")

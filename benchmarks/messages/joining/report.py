"""What the rows of joining say: medians, ratios within one run, bytes between hosts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.harness.hosts import bits_per_second
from benchmarks.harness.results import Row
from benchmarks.harness.tables import markdown, write
from benchmarks.messages.joining.worker import WAYS

_FLAT = WAYS[0]
_FORMS = {"none": "float32", "bf16": "bf16", "fp16": "fp16"}


def report(out: Path, rows: Sequence[Row]) -> None:
    """Write joining.md from all rows there are."""
    if not rows:
        print("no results")
        return
    parts = [
        "# Joining a vector between hosts",
        "One message of a vector and five scalars, median ms of the slowest rank (quickest and "
        "slowest call in brackets), calls of all ways in turns. Ratio: the median of flat float32 "
        "by this one's, of the same run. MB: what left all hosts' network interfaces in one call, "
        "headers included, median; the vector itself is 4 bytes a number. Hosts are network "
        "namespaces of one machine, so hosts and ranks share its cores.",
    ]
    places = sorted({_place(row) for row in rows})
    for hosts, ranks, link, n in places:
        own = [row for row in rows if _place(row) == (hosts, ranks, link, n)]
        line = ""
        if link != "unlimited":
            # Of one float32 vector, through the cables in both directions at once.
            seconds = 4 * n * 8 / bits_per_second(link)
            line = f"; the line itself takes {1e3 * seconds:.0f} ms for the vector"
        parts.append(f"## {n} parameters, {hosts} hosts x {ranks // hosts} ranks, {link}{line}")
        parts.append(_table(own))
    parts.append(_setup(rows))
    write(out / "joining.md", *parts)


def _place(row: Row) -> tuple[int, int, str, int]:
    s = row["settings"]
    return s["hosts"], s["ranks"], s["link"], s["parameters"]


def _table(rows: Sequence[Row]) -> str:
    """A line a way and setting of MPI."""
    found = {(row["settings"]["mpi"], row["settings"]["way"]): row for row in rows}
    settings = list(dict.fromkeys(mpi for mpi, _ in found))
    body = []
    for mpi in settings:
        for way in WAYS:
            row = found.get((mpi, way))
            if row is None:
                continue
            seconds, flat = row["seconds"], found.get((mpi, _FLAT))
            middle = median(seconds)
            ratio = f"{median(flat['seconds']) / middle:.2f}" if flat else "-"
            kind, form = way.split()
            body.append(
                (
                    *(mpi, kind, _FORMS[form]),
                    f"{1e3 * middle:.1f} [{1e3 * min(seconds):.1f}, {1e3 * max(seconds):.1f}]",
                    ratio,
                    f"{median(row['bytes_left']) / 1e6:.2f}",
                )
            )
    return markdown(("MPI settings", "way", "numbers", "ms", "ratio", "MB"), body, text=3)


def _setup(rows: Sequence[Row]) -> str:
    def all_of(name: str) -> str:
        return ", ".join(sorted({str(row[name]) for row in rows}))

    loads = [row["load"] for row in rows]
    versions = sorted({f"{k} {v}" for row in rows for k, v in row["versions"].items()})
    return (
        f"Set-up: {'; '.join(versions)}; cores {all_of('cores')}; calls of each way "
        f"{', '.join(sorted({str(len(row['seconds'])) for row in rows}))}; load average after a "
        f"size {min(loads)} to {max(loads)}; commit {all_of('commit')}; {all_of('date')}."
    )

"""What the rows of joining say: medians, ratios within one run, bytes between hosts."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.harness import tables
from benchmarks.harness.hosts import UNLIMITED, bits_per_second
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Section, Table
from benchmarks.messages.joining.task import WAYS

_FLAT = WAYS[0]
_FORMS = {"none": "float32", "bf16": "bf16", "fp16": "fp16"}


def section(rows: Sequence[Row], options: object = None) -> Section:
    """All rows there are, by place and length."""
    whole = Section(
        "Joining a vector between hosts",
        [
            "One message of a vector and five scalars, median ms of the slowest rank (quickest and "
            "slowest call in brackets), calls of all ways in turns. Ratio: the median of flat "
            "float32 by this one's, of the same run. MB: what left all hosts' network interfaces "
            "in one call, headers included, median; the vector itself is 4 bytes per number. Hosts "
            "are network namespaces of one machine, so hosts and ranks share its cores."
        ],
    )
    for hosts, ranks, link, n in sorted({_place(row) for row in rows}):
        own = [row for row in rows if _place(row) == (hosts, ranks, link, n)]
        line = ""
        if link != UNLIMITED:
            # Of one float32 vector, through the cables in both directions at once.
            seconds = 4 * n * 8 / bits_per_second(link)
            line = f"; the line itself takes {1e3 * seconds:.0f} ms for the vector"
        title = f"{n} parameters, {hosts} hosts x {ranks // hosts} ranks, {link}{line}"
        whole.below.append(Section(title, [_table(own)]))
    calls = ", ".join(sorted({str(len(row["seconds"])) for row in rows}))
    loads = [row["load"] for row in rows]
    load = f"calls of each way {calls}; load average after a size {min(loads)} to {max(loads)}"
    whole.foot.append(tables.setup(rows, load))
    return whole


def _place(row: Row) -> tuple[int, int, str, int]:
    s = row["settings"]
    return s["hosts"], s["ranks"], s["link"], s["parameters"]


def _table(rows: Sequence[Row]) -> Table:
    """A line per way and setting of MPI."""
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
    return Table("", ("MPI settings", "way", "numbers", "ms", "ratio", "MB"), body, text=3)

"""Section of the set-up: machines, versions, configurations, files; all that a reader needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness import names
from benchmarks.harness.results import Row
from benchmarks.harness.rows import KINDS, SCALING, Rows
from benchmarks.harness.sections import Section, Table, Text
from benchmarks.harness.statistics import LEVEL, RESAMPLES

# Names in settings or beside them, in the order of the table; what no row has is left out.
_SETTINGS = ("method", "data", "hidden", "ranks", "hosts", "link", "mpi", "batch", "lr")
_LINES = {
    **{name: name for name in _SETTINGS},
    "host": "host",
    "cores": "cores of a host that may be used",
    "host_cores": "cores of a host",
    "device": "device",
    "threads": "threads per rank",
    "threads_per_rank": "threads per rank",
    "binding": "cores of a rank (binding)",
    "parameters": "parameters",
    "samples": "samples of the training set",
    "local_steps": "local steps per outer iteration",
    "oversubscribed": "more ranks than cores",
    "commit": "commit",
    "date": "date",
}


def section(rows: Rows) -> Section:
    """The set-up of all rows."""
    kinds = [kind for kind in KINDS if rows[kind] and kind != "fitted"]

    def table(caption: str, labels: Row, value: Callable[[Row, str], object]) -> Table:
        lines = [
            [label, *(_all(value(row, name) for row in rows[kind]) for kind in kinds)]
            for name, label in labels.items()
        ]
        lines = [line for line in lines if any(cell != "-" for cell in line[1:])]
        return Table(caption, ["what", *kinds], lines, text=1 + len(kinds))

    def versions(row: Row) -> Row:
        found = row.get("versions")
        return found if isinstance(found, dict) else {}

    known = sorted({name for row in rows.everything for name in versions(row)})
    return Section(
        "Set-up",
        [
            Text("Everything that the results say of how they came about, by benchmark."),
            table(
                "Settings and machines", _LINES, lambda row, n: row["settings"].get(n, row.get(n))
            ),
            table("Versions", {name: name for name in known}, lambda row, n: versions(row).get(n)),
            _files(rows),
        ],
    )


def _all(values: Any) -> str:
    """Every different value, numbers in order."""
    found = {_word(value): value for value in values if value is not None}
    if not found:
        return "-"

    def order(word: str) -> tuple[bool, float, str]:
        value = found[word]
        number = isinstance(value, (int, float))
        return (not number, float(value) if number else 0.0, word)

    return "; ".join(sorted(found, key=order))


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else names.mpi(names.shown(str(value)))


def _files(rows: Rows) -> Table:
    lines = [
        [one.name, "; ".join(f"{kind} {n}" for kind, n in one.rows.items()), one.checksum]
        for one in rows.sources
    ]
    return Table("Files", ["file", "rows", "SHA-256, its start"], lines, text=3)


def method() -> Section:
    """How numbers came about."""
    return Section(
        "How to read this",
        [
            Text(
                f"Numbers are medians; brackets hold {100 * LEVEL:.0f} percent intervals of "
                f"percentile bootstraps ({RESAMPLES} resamples, seeded; scipy.stats.bootstrap). "
                "What is drawn anew are whole runs, as iterations of a run are alike, and single "
                "iterations where there is one run only. Of few runs such intervals tend to be too "
                "narrow. "
                "Where brackets hold least and most instead, the heading says so."
            ),
            Text(
                "Ratios (speedup, efficiency, shares) are of medians or of sums; no ratio is an "
                "average of ratios. The base case stands beside every speedup in seconds."
            ),
            Text(
                "Work: an epoch is as many sample gradients as the training set has samples, of "
                "all ranks together. Compute: forward and backward passes (gradient) and what an "
                "optimizer does besides (algebra). Communication: transfer in Allreduce and Bcast. "
                "Wait: for the slowest rank, before a transfer. Bytes are payload that a rank "
                "hands over; MB are 1,000,000 bytes. Messages are those of the parameters' length."
            ),
        ],
    )


def machines(rows: Rows) -> str:
    """The host that scaling was measured on, or how many, and cores of each; "" without it."""
    own = [row for kind in SCALING for row in rows[kind]]
    hosts = sorted({str(row["host"]) for row in own})
    cores = sorted({int(row["cores"]) for row in own})
    if not hosts:
        return ""
    each = f"{' to '.join(map(str, dict.fromkeys((cores[0], cores[-1]))))} cores" if cores else ""
    named = hosts[0] if len(hosts) == 1 else f"{len(hosts)} hosts"
    return f"{named}, {each}" if each else named


def span(rows: Sequence[Row]) -> str:
    """From which days and commits rows are."""
    dates = sorted({str(row["date"]) for row in rows if row.get("date")})
    commits = sorted({str(row["commit"]) for row in rows if row.get("commit")})
    found = []
    if dates:
        found.append(dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}")
    if commits:
        found.append(f"commit {commits[0]}" if len(commits) == 1 else f"{len(commits)} commits")
    return "; ".join(found)

"""What a checkpoint costs: seconds, bytes, and the share of a run that writes them.

A run on the digits writes one after every other outer iteration; the seconds are the slowest
rank's, flushed to the disk, with the check that precedes each. Writes checkpoint.md and
checkpoint.jsonl; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import apts_mpi
from apts_mpi.errors import InputError
from benchmarks.harness import tables
from benchmarks.harness.jobs import mpirun
from benchmarks.harness.options import whole_numbers
from benchmarks.harness.progress import measure_missing
from benchmarks.harness.results import Results, Row

NETWORKS = ("128,128", "1024,784", "2048,2048")
INTERVALS = (60, 600)  # seconds between checkpoints; the second is the default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--ranks", type=whole_numbers, default=(1, 2, 4), help="like 1,2 (default 1,2,4)"
    )
    parser.add_argument(
        "--repetitions", type=int, default=15, metavar="N", help="checkpoints (default 15)"
    )
    parser.add_argument(
        "--folder", metavar="DIR", help="of the runs, to measure its file system (default: /tmp's)"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is done")


def run(parsed: argparse.Namespace) -> int:
    """Measure what is missing, write all that is there."""
    if min(parsed.ranks) < 1 or not 3 <= parsed.repetitions <= 10**4:
        raise InputError("--ranks must be positive, --repetitions 3 to 10000")
    out = Path(parsed.out)
    results = Results(out / "checkpoint.jsonl", fresh=parsed.fresh)
    cases = [
        (
            {"apts_mpi": apts_mpi.__version__, "hidden": hidden, "ranks": ranks},
            f"{hidden}, N = {ranks}",
        )
        for hidden in NETWORKS
        for ranks in parsed.ranks
    ]

    def measure(settings: Row) -> tuple[Row, str]:
        hidden, ranks = settings["hidden"], settings["ranks"]
        row = _measured(hidden, ranks, parsed.repetitions, parsed.folder)
        return row, f"{1e3 * median(row['checkpoint_seconds']):.0f} ms"

    failures = measure_missing(cases, results, measure)
    _report(out, results.rows())
    return 1 if failures else 0


def _measured(hidden: str, ranks: int, repetitions: int, parent: str | None) -> Row:
    with tempfile.TemporaryDirectory(dir=parent) as name:
        words = ["-m", "benchmarks.cost.checkpoint.worker", hidden, str(repetitions), name]
        mpirun(ranks, words, timeout=1200.0)
        own = [
            json.loads((Path(name) / f"rank-{rank}.json").read_text(encoding="utf-8"))
            for rank in range(ranks)
        ]
    slowest = {
        kind: [float(x) for x in np.max([each[kind] for each in own], axis=0)]
        for kind in ("checkpoints", "iterations")
    }
    return {
        "checkpoint_seconds": slowest["checkpoints"],
        "iteration_seconds": slowest["iterations"],
        **{name: own[0][name] for name in ("bytes", "parameters", "threads_per_rank", "versions")},
    }


def _report(out: Path, rows: list[Row]) -> None:
    """Write checkpoint.md."""
    if not rows:
        return
    header = ["parameters", "N", "MB in all", "checkpoint, ms", "quartiles", "iteration, ms"]
    header += [f"every {each} s, %" for each in INTERVALS]
    rows = sorted(rows, key=lambda row: (row["parameters"], row["settings"]["ranks"]))
    tables.write(
        out / "checkpoint.md",
        "# What a checkpoint costs",
        "Median of the seconds of the slowest rank, from a common start until all files are on the "
        "disk and have their names, with the check of the parameters' copies that precedes it. An "
        "iteration is the default's, on the digits. The last columns: the share of a run that "
        "writes one so often (600 s is the default).",
        tables.markdown(header, map(_line, rows), text=0),
        tables.setup(rows) + " Repeat: `python -m benchmarks checkpoint --fresh`.",
    )


def _line(row: Row) -> list[Any]:
    seconds = row["checkpoint_seconds"]
    middle = median(seconds)
    low, high = np.quantile(seconds, [0.25, 0.75])
    return [
        *(f"{row['parameters']:,}", row["settings"]["ranks"], f"{row['bytes'] / 1e6:.1f}"),
        *(f"{1e3 * middle:.0f}", f"{1e3 * low:.0f} to {1e3 * high:.0f}"),
        f"{1e3 * median(row['iteration_seconds']):.0f}",
        *(f"{100 * middle / (middle + each):.2f}" for each in INTERVALS),
    ]

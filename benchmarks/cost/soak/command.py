"""Whether a long run stays as it was: memory of every rank, open files, seconds an iteration.

Trains on the digits for half an hour, with a checkpoint every 20 s, and looks at every rank now and
then; what comes after a warm-up must not grow. Writes soak.md, soak.png and soak.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import apts_mpi
from apts_mpi.errors import InputError
from benchmarks.harness import figures, tables
from benchmarks.harness.jobs import mpirun
from benchmarks.harness.results import Results, Row, origin

GROWTH = 2.0  # percent that memory may grow
LOOKS = 180  # of every rank, in the whole run
COLUMNS = (
    *("seconds", "iteration", "resident", "handles", "threads"),
    *("iteration_seconds", "iteration_cpu"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--ranks", type=int, default=4, metavar="N", help="(default 4)")
    parser.add_argument(
        "--seconds", type=float, default=1800.0, metavar="S", help="of the run (default 1800)"
    )
    parser.add_argument(
        "--warm-up", type=float, default=0.1, metavar="X", help="part of it (default 0.1)"
    )


def run(parsed: argparse.Namespace) -> int:
    """Make the run and tell; 1 where something has grown."""
    if parsed.ranks < 1 or not 5 <= parsed.seconds <= 1e6 or not 0 <= parsed.warm_up <= 0.5:
        raise InputError("--ranks must be positive, --seconds 5 or more, --warm-up 0 to 0.5")
    if not sys.platform.startswith("linux"):
        raise InputError("soak looks at processes in /proc, which only Linux has")
    figures.require("matplotlib")
    out = Path(parsed.out)
    results = Results(out / "soak.jsonl", fresh=True)
    with tempfile.TemporaryDirectory() as name:
        words = [str(parsed.seconds), str(parsed.seconds / LOOKS), name]
        mpirun(
            parsed.ranks,
            ["-m", "benchmarks.cost.soak.worker", *words],
            timeout=parsed.seconds + 300,
        )
        for rank in range(parsed.ranks):
            lines = (Path(name) / f"rank-{rank}.jsonl").read_text(encoding="utf-8").splitlines()
            settings = {"apts_mpi": apts_mpi.__version__, "rank": rank, "ranks": parsed.ranks}
            looks = [json.loads(line) for line in lines]
            columns = {key: [look[key] for look in looks] for key in COLUMNS}
            results.add(settings, {**columns, **origin()})
    return _report(out, results.rows(), parsed.warm_up)


def growth(values: NDArray[np.float64]) -> float:
    """Percent from the median of the first fifth to that of the last; looks scatter."""
    fifth = max(len(values) // 5, 1)
    first, last = np.median(values[:fifth]), np.median(values[-fifth:])
    return float(100.0 * (last / first - 1.0))


def _report(out: Path, rows: list[Row], warm_up: float) -> int:
    """Write soak.md and soak.png; 1 where something has grown."""
    body, grown = [], False
    for row in rows:
        seconds = np.array(row["seconds"])
        settled = seconds >= warm_up * seconds[-1]
        memory, handles, cpu, wall = (
            np.array(row[key], dtype=float)[settled]
            for key in ("resident", "handles", "iteration_cpu", "iteration_seconds")
        )
        swing = 100.0 * (memory.max() / memory.min() - 1.0)
        grown |= swing > GROWTH or handles[-1] > handles[0]
        body.append(
            [
                *(row["settings"]["rank"], f"{np.median(memory) / 2**20:.0f}"),
                *(f"{growth(memory):+.2f}", f"{swing:.2f}"),
                *(f"{handles.min():.0f} to {handles.max():.0f}", int(max(row["threads"]))),
                *(f"{1e3 * np.median(wall):.2f}", f"{growth(wall):+.1f}"),
                *(f"{1e3 * np.median(cpu):.2f}", f"{growth(cpu):+.1f}"),
            ]
        )
    header = ["rank", "memory, MiB", "growth, %", "largest to least, %", "open files", "threads"]
    header += ["iteration, ms", "growth, %", "processor's, ms", "growth, %"]
    most = max(row["seconds"][-1] for row in rows)
    verdict = "grows" if grown else "stays flat"
    tables.write(
        out / "soak.md",
        "# A long run",
        f"{len(rows)} ranks for {most / 60:.0f} minutes on the digits, "
        f"{rows[0]['iteration'][-1]:,} outer iterations, a checkpoint every 20 s, the watch on. "
        f"What follows is after a warm-up of {100 * warm_up:.0f} % of the time: memory {verdict} "
        f"(allowed: {GROWTH:g} % from least to largest). Growth: from the median of the first "
        "fifth of the looks to that of the last. Wall time has other programs' load in it, the "
        "processor's less.",
        tables.markdown(header, body, text=0),
        "![memory and speed](soak.png)",
        f"Cores {rows[0]['cores']}, one thread a rank; commit {rows[0]['commit']}; "
        f"{rows[0]['date']}. Repeat: `python -m benchmarks soak`.",
    )
    _draw(out / "soak.png", rows)
    return int(grown)


def _draw(path: Path, rows: list[Row]) -> None:
    plt = figures.pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for row, colour in zip(rows, figures.COLOURS * len(rows), strict=False):
        minutes = np.array(row["seconds"]) / 60
        name = f"rank {row['settings']['rank']}"
        axes[0].plot(minutes, np.array(row["resident"]) / 2**20, color=colour, label=name)
        axes[1].plot(minutes, 1e3 * np.array(row["iteration_cpu"]), color=colour, label=name)
    for axis, text in zip(axes, ("memory, MiB", "processor's ms an iteration"), strict=True):
        axis.set_xlabel("minutes")
        axis.set_ylabel(text)
        axis.set_ylim(bottom=0)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"written: {path}")

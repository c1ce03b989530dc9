"""Whether a long run stays as it was: memory per rank, open files, seconds per iteration.

Trains on the digits for half an hour, with a checkpoint every 20 s, and looks at every rank now and
then; what comes after a warm-up must not grow. Writes soak.md, soak.png and
soak.jsonl; with --fresh the run is made again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from statistics import median_high
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.errors import AgreedError, InputError
from benchmarks.harness import figures
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.options import real, whole
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Image, Section, Table
from benchmarks.harness.worker import resident, training

if TYPE_CHECKING:
    from apts_mpi.comm.communicator import Comm
    from apts_mpi.training.loop import Lap

GROWTH = 2.0  # percent that memory may grow
LOOKS = 180  # of every rank, in the whole run
FLAGS = (
    *("--threads", "1", "--epochs", "1e12", "--checkpoint-every", "20s"),
    *("--evaluate-every", "50"),
)


def check(options: Namespace) -> None:
    """Processes are looked at in /proc."""
    if not sys.platform.startswith("linux") and not options.report_only:
        raise InputError("soak looks at processes in /proc, which only Linux has")


def plan(session: Session) -> Rounds:
    """One run; a row per rank."""
    seconds, ranks = session.options.seconds, session.options.ranks
    rows = [dict(rank=k, ranks=ranks) for k in range(ranks)]
    piece = Piece(
        settings=rows,
        words=f"{ranks} ranks for {seconds:g} s",
        arguments={"seconds": seconds, "every": seconds / LOOKS},
        keep=keep,
    )
    task = "benchmarks.cost.soak:task"
    yield [Job(task=task, ranks=ranks, pieces=[piece], timeout=seconds + 300)]


def keep(outcome: Outcome) -> tuple[list[Row], str]:
    """The looks of every rank, by column."""
    rows = [{key: [look[key] for look in looks] for key in looks[0]} for looks in outcome.values]
    return rows, f"{rows[0]['iteration'][-1]:,} outer iterations"


def task(comm: Comm, folder: Path, seconds: float, every: float) -> list[Row]:
    """A long run that looks at itself now and then, on every rank."""
    from apts_mpi.comm.watch import Watch

    sampler = Sampler(every)
    flags = [*FLAGS, "--max-seconds", str(seconds), "--out", str(folder / "run")]
    with Watch(comm) as comm.watch:
        try:
            training(flags, comm).run(sampler.heard)
        except AgreedError as error:
            if error.status != 3:
                raise
            return sampler.looks
    raise RuntimeError("the run has come to its end before the time")


class Sampler:
    """Memory, open files, threads, wall and processor time of this process, as it trains."""

    def __init__(self, every: float) -> None:
        self.looks: list[Row] = []
        self._every = every
        self._start = self._last = time.monotonic()
        self._walls: list[float] = []
        self._cpu = time.process_time()

    def heard(self, row: dict[str, Any], lap: Lap, rest: Lap) -> None:
        """An outer iteration has ended."""
        self._walls.append(sum(lap.values()))
        now = time.monotonic()
        if now - self._last < self._every:
            return
        cpu = time.process_time()
        look = {
            "seconds": now - self._start,
            "iteration": row["iteration"],
            "resident": resident(),
            "handles": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "iteration_seconds": median_high(self._walls),
            "iteration_cpu": (cpu - self._cpu) / len(self._walls),
        }
        self.looks.append(look)
        self._last, self._cpu = now, cpu
        self._walls.clear()


def growth(values: NDArray[np.float64]) -> float:
    """Percent from the median of the first fifth to that of the last; looks scatter."""
    fifth = max(len(values) // 5, 1)
    first, last = np.median(values[:fifth]), np.median(values[-fifth:])
    return float(100.0 * (last / first - 1.0))


def settled(row: Row, warm_up: float) -> Row:
    """The looks after the warm-up, by column."""
    seconds = np.array(row["seconds"])
    chosen = seconds >= warm_up * seconds[-1]
    names = ("resident", "handles", "iteration_cpu", "iteration_seconds")
    return {name: np.array(row[name], dtype=float)[chosen] for name in names}


def swing(memory: NDArray[np.float64]) -> float:
    """Percent from the least to the largest."""
    return float(100.0 * (memory.max() / memory.min() - 1.0))


def flat(rows: list[Row], options: Namespace) -> bool:
    """Whether neither memory nor open files have grown."""
    looks = [settled(row, options.warm_up) for row in rows]
    return not any(
        swing(look["resident"]) > GROWTH or look["handles"][-1] > look["handles"][0]
        for look in looks
    )


def section(rows: list[Row], options: Namespace) -> Section:
    """What the rows say."""
    header = ["rank", "memory, MiB", "growth, %", "largest to least, %", "open files", "threads"]
    header += ["iteration, ms", "growth, %", "processor's, ms", "growth, %"]
    most = max(row["seconds"][-1] for row in rows)
    verdict = "stays flat" if flat(rows, options) else "grows"
    return Section(
        "A long run",
        [
            f"{len(rows)} ranks for {most / 60:.0f} minutes on the digits, "
            f"{rows[0]['iteration'][-1]:,} outer iterations, a checkpoint every 20 s, the watch "
            f"on. What follows is after a warm-up of {100 * options.warm_up:.0f} % of the time: "
            f"memory {verdict} (allowed: {GROWTH:g} % from least to largest). Growth: from the "
            "median of the first fifth of the looks to that of the last. Wall time has other "
            "programs' load in it, the processor's less.",
            Table("", header, [_line(row, options.warm_up) for row in rows], text=0),
            Image("memory and speed", "soak.png"),
            f"Cores {rows[0]['cores']}, one thread per rank; commit {rows[0]['commit']}; "
            f"{rows[0]['date']}. Repeat: `python -m benchmarks soak --fresh`.",
        ],
    )


def _line(row: Row, warm_up: float) -> list[object]:
    look = settled(row, warm_up)
    memory, handles = look["resident"], look["handles"]
    cpu, wall = look["iteration_cpu"], look["iteration_seconds"]
    return [
        *(row["settings"]["rank"], f"{np.median(memory) / 2**20:.0f}"),
        *(f"{growth(memory):+.2f}", f"{swing(memory):.2f}"),
        *(f"{handles.min():.0f} to {handles.max():.0f}", int(max(row["threads"]))),
        *(f"{1e3 * np.median(wall):.2f}", f"{growth(wall):+.1f}"),
        *(f"{1e3 * np.median(cpu):.2f}", f"{growth(cpu):+.1f}"),
    ]


def draw(rows: list[Row], options: Namespace, out: Path) -> None:
    """Memory and speed by time."""
    figure, (axes,) = figures.panels(1, 2, (8, 3))
    for row, colour in zip(rows, figures.COLOURS * len(rows), strict=False):
        minutes = np.array(row["seconds"]) / 60
        name = f"rank {row['settings']['rank']}"
        axes[0].plot(minutes, np.array(row["resident"]) / 2**20, color=colour, label=name)
        axes[1].plot(minutes, 1e3 * np.array(row["iteration_cpu"]), color=colour, label=name)
    for axis, text in zip(axes, ("memory, MiB", "processor's ms per iteration"), strict=True):
        axis.set_xlabel("minutes")
        axis.set_ylabel(text)
        axis.set_ylim(bottom=0)
    axes[0].legend()
    figures.save(figure, out / "soak.png")


COMMAND = Command(
    name="soak",
    options=(
        whole("--ranks", 4, ""),
        real("--seconds", 1800.0, "of the run", unit="S", least=5, most=1e6),
        real("--warm-up", 0.1, "part of it", least=0, most=0.5),
    ),
    plan=plan,
    section=section,
    draw=draw,
    verdict=flat,
    check=check,
    libraries=("matplotlib",),
)

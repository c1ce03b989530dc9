"""What a checkpoint costs: seconds, bytes, and the share of a run that writes them.

A run on the digits writes one after every other outer iteration; the seconds are the slowest
rank's, flushed to the disk, with the check that precedes each. Writes checkpoint.md and
checkpoint.jsonl; what is there is not measured again.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import tables
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.measure import Job, Outcome, Piece, Session
from benchmarks.harness.options import option, several, whole
from benchmarks.harness.results import Row
from benchmarks.harness.sections import Section, Table
from benchmarks.harness.worker import training

if TYPE_CHECKING:
    from apts_mpi.comm.communicator import Comm
    from apts_mpi.training.loop import Lap

NETWORKS = ("128,128", "1024,784", "2048,2048")
INTERVALS = (60, 600)  # seconds between checkpoints; the second is the default
WARM_UP = 2  # checkpoints that do not count


def plan(session: Session) -> Rounds:
    """A job for every number of ranks, a piece for every network."""
    yield [
        Job(
            task="benchmarks.cost.checkpoint:task",
            ranks=ranks,
            pieces=[
                Piece(
                    settings=[dict(hidden=hidden, ranks=ranks)],
                    words=f"{hidden}, N = {ranks}",
                    arguments={"hidden": hidden, "repetitions": session.options.repetitions},
                    keep=keep,
                )
                for hidden in NETWORKS
            ],
        )
        for ranks in session.options.ranks
    ]


def keep(outcome: Outcome) -> tuple[list[Row], str]:
    """The seconds of the slowest rank."""
    own = outcome.values
    row = {
        f"{kind}_seconds": [float(x) for x in np.max([each[kind] for each in own], axis=0)]
        for kind in ("checkpoint", "iteration")
    }
    names = ("bytes", "parameters", "threads_per_rank", "versions")
    row |= {name: own[0][name] for name in names}
    return [row], f"{1e3 * median(row['checkpoint_seconds']):.0f} ms"


def task(comm: Comm, folder: Path, hidden: str, repetitions: int) -> Row:
    """A run with a checkpoint after every other outer iteration, timed on this rank."""
    from apts_mpi.checkpoints.folder import listed
    from apts_mpi.training.provenance import versions

    flags = ["--hidden", hidden, "--threads", "1", "--epochs", "1e9", "--evaluate-every", "1e8"]
    flags += ["--iterations", str(2 * (repetitions + WARM_UP)), "--checkpoint-every", "off"]
    run = training([*flags, "--out", str(folder / "run")], comm)
    checkpoints: list[float] = []
    iterations: list[float] = []

    def heard(row: dict[str, Any], lap: Lap, rest: Lap) -> None:
        iterations.append(sum(lap.values()) + sum(rest.values()) - rest["evaluation"])
        if row["iteration"] % 2 == 0:
            comm.agree(None)  # so that all ranks begin together
            start = time.perf_counter()
            comm.check_replicas(run.built.network.vector)  # goes with every checkpoint
            failed = run.checkpoint()
            checkpoints.append(time.perf_counter() - start)
            if failed is not None:
                raise RuntimeError(failed)

    run.run(heard)
    newest = listed(folder / "run" / "checkpoint")[0]
    return {
        "checkpoint": checkpoints[WARM_UP:],
        "iteration": iterations[2 * WARM_UP :],
        "bytes": sum(path.stat().st_size for path in newest.iterdir()),
        "parameters": run.built.network.n,
        "threads_per_rank": run.built.placement.threads,
        "versions": versions(),
    }


def section(rows: list[Row], options: Namespace) -> Section:
    """What the rows say."""
    header = ["parameters", "N", "MB in all", "checkpoint, ms", "quartiles", "iteration, ms"]
    header += [f"every {each} s, %" for each in INTERVALS]
    rows = sorted(rows, key=lambda row: (row["parameters"], row["settings"]["ranks"]))
    return Section(
        "What a checkpoint costs",
        [
            "Median of the seconds of the slowest rank, from a common start until all files are on "
            "the disk and have their names, with the check of the parameters' copies that precedes "
            "it. An iteration is the default's, on the digits. The last columns: the share of a "
            "run that writes one so often (600 s is the default).",
            Table("", header, list(map(_line, rows)), text=0),
            tables.foot(rows, "checkpoint"),
        ],
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


COMMAND = Command(
    name="checkpoint",
    options=(
        several("--ranks", (1, 2, 4)),
        whole("--repetitions", 15, "checkpoints", least=3, most=10**4),
        option("--folder", metavar="DIR", help="of the runs, to measure its disk (default /tmp's)"),
    ),
    plan=plan,
    section=section,
)

"""A run with a checkpoint after every other outer iteration, timed on every rank.

``mpirun -n N python -m benchmarks.cost.checkpoint.worker HIDDEN REPETITIONS FOLDER``; every rank
writes ``rank-R.json`` there.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from apts_mpi.__main__ import guarded
from apts_mpi.checkpoints.folder import listed
from apts_mpi.cli.main import train_settings
from apts_mpi.comm.communicator import Comm
from apts_mpi.training.loop import Lap, Training
from apts_mpi.training.provenance import versions
from benchmarks.harness.worker import leave

WARM_UP = 2  # checkpoints that do not count


def work(hidden: str, repetitions: int, folder: Path) -> int:
    """The run, on every rank."""
    comm = Comm()
    flags = ["--hidden", hidden, "--threads", "1", "--epochs", "1e9", "--evaluate-every", "1e8"]
    flags += ["--iterations", str(2 * (repetitions + WARM_UP)), "--checkpoint-every", "off"]
    training = Training(train_settings([*flags, "--out", str(folder / "run")]), comm)
    checkpoints: list[float] = []
    iterations: list[float] = []

    def heard(row: dict[str, Any], lap: Lap, rest: Lap) -> None:
        iterations.append(sum(lap.values()) + sum(rest.values()) - rest["evaluation"])
        if row["iteration"] % 2 == 0:
            comm.agree(None)  # so that all ranks begin together
            start = time.perf_counter()
            comm.check_replicas(training.built.network.vector)  # goes with every checkpoint
            failed = training.checkpoint()
            checkpoints.append(time.perf_counter() - start)
            if failed is not None:
                raise RuntimeError(failed)

    training.run(heard)
    newest = listed(folder / "run" / "checkpoint")[0]
    leave(
        folder,
        {
            "checkpoints": checkpoints[WARM_UP:],
            "iterations": iterations[2 * WARM_UP :],
            "bytes": sum(path.stat().st_size for path in newest.iterdir()),
            "parameters": training.built.network.n,
            "threads_per_rank": training.built.placement.threads,
            "versions": versions(),
        },
        comm,
    )
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: work(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))

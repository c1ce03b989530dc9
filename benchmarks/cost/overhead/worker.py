"""One measurement of ``cost`` on every rank of an MPI job.

``mpirun -n N python -m benchmarks.cost.overhead.worker NETWORK SOLVER REPETITIONS FILE``; rank 0
writes the rows as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from apts_mpi.__main__ import guarded
from benchmarks.cost.overhead.cases import NETWORKS
from benchmarks.harness.results import Row


def measured(network: str, solver: str, repetitions: str, path: str = "") -> dict[str, Row]:
    """The rows by method, which rank 0 writes where a path is given."""
    from apts_mpi.comm.communicator import Comm
    from benchmarks.cost.overhead.measure import measure

    comm = Comm()
    rows = measure(NETWORKS[network], solver, comm, int(repetitions))
    if path and comm.rank == 0:
        Path(path).write_text(json.dumps(rows), encoding="utf-8")
    return rows


def main() -> int:
    """Measure what the command line says."""
    measured(*sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

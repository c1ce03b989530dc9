"""What the tests of joining run on every rank: ``mpirun -n N python joining_programs.py NAME``.

Each function asserts on every rank; a failed assertion ends the job with its traceback.
"""

from __future__ import annotations

import sys

import numpy as np
from mpi4py import MPI

from apts_mpi.__main__ import guarded
from apts_mpi.comm import Comm


def rows_of_scalars() -> None:
    """N ranks with a subdomain each sum exactly what one rank with N subdomains does."""
    comm, alone = Comm(), Comm(MPI.COMM_SELF)
    for rows in (1, 3):
        table = np.random.default_rng(1).normal(size=(comm.size * rows, 4)).tolist()
        own = table[comm.rank * rows : (comm.rank + 1) * rows]
        assert comm.sum_scalars(*own) == alone.sum_scalars(*table)


def run_all() -> None:
    """The functions that the command line names, in turn."""
    for name in sys.argv[1:]:
        if Comm().rank == 0:
            print(name, flush=True)  # so that a failure says in which
        globals()[name]()


if __name__ == "__main__":
    sys.exit(guarded(run_all))

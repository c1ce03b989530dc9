"""What the tests of the watch run on every rank: ``mpirun -n N python watch_programs.py NAME``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from apts_mpi.__main__ import guarded
from apts_mpi.comm import watch
from apts_mpi.comm.communicator import Comm

WARNING, ABORT = 1.0, 3.0


def watched(abort: float = ABORT) -> Comm:
    """The ranks, watched in the folder ``run``; their processes are told in files."""
    comm = Comm()
    Path("run").mkdir(exist_ok=True)
    Path(f"process-{comm.rank}").write_text(str(os.getpid()))
    comm.watch = watch.Watch(comm, WARNING, abort)
    comm.watch.start()
    return comm


def meet(comm: Comm) -> None:
    comm.allreduce(np.zeros(1))


def loop() -> None:
    while True:
        time.sleep(0.01)


def faults() -> None:
    """Two ranks that are late, then one that stops and one that loops."""
    comm = watched()
    assert comm.watch is not None
    if comm.rank == 1:
        time.sleep(1.5 * WARNING)
    meet(comm)
    comm.watch.directory = Path("run")
    if comm.rank == 0:
        time.sleep(1.5 * WARNING)
    meet(comm)
    time.sleep(0.3 * WARNING)  # so that no rank has a file
    if comm.rank == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    if comm.rank == 3:
        loop()
    meet(comm)


def deserted() -> None:
    """A rank that loops, while the launcher does what it should not."""
    watch._GRACE = 0.5
    comm = watched(abort=1.5 * WARNING)
    assert comm.watch is not None
    comm.watch.directory = Path("run")
    meet(comm)
    Path(f"ready-{comm.rank}").touch()
    if comm.rank == 1:
        loop()
    meet(comm)


if __name__ == "__main__":
    sys.exit(guarded(globals()[sys.argv[1]]))

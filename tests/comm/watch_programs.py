"""What the tests of the watch run on every rank: ``mpirun -n N python watch_programs.py NAME``."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np

from apts_mpi.__main__ import guarded
from apts_mpi.comm import watch
from apts_mpi.comm.communicator import Comm

WARNING, ABORT = 0.5, 3.0


def watched(abort: float) -> Comm:
    """The ranks, watched; their processes, and what they report, are in files."""
    comm = Comm()
    Path("run").mkdir(exist_ok=True)
    Path(f"process-{comm.rank}").write_text(str(os.getpid()))
    report = watch.write_error

    def reported(text: str) -> None:
        report(text)
        with Path("reported").open("a") as file:
            file.write(text)

    watch.write_error = reported
    comm.watch = watch.Watch(comm, WARNING, abort)
    comm.watch.start()
    return comm


def meet(comm: Comm) -> None:
    comm.allreduce(np.zeros(1))


def loop(line: str = "never") -> None:
    """Until a line has been reported, however long that takes."""
    file = Path("reported")
    while not (file.exists() and re.search(line, file.read_text())):
        time.sleep(0.01)


def late() -> None:
    """Each late rank waits for its being reported; in the end one is stopped and another loops."""
    comm = watched(abort=0)
    assert comm.watch is not None
    if comm.rank == 1:
        loop("rank 0 on .* at allreduce 1; which ranks have not arrived is not known")
    meet(comm)
    comm.watch.directory = Path("run")
    if comm.rank == 0:
        loop(r"at allreduce 2; not arrived: rank 0 .*computing for .* watch_programs.py:\d+ loop")
    meet(comm)
    if comm.rank == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    if comm.rank == 3:
        other = int(Path("process-2").read_text())
        while Path(f"/proc/{other}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
            time.sleep(0.01)
        loop("2 of 4 .* at allreduce 3; not arrived: rank 2 .*no sign of life.* rank 3 .* loop")
        os.kill(other, signal.SIGCONT)
    meet(comm)
    if comm.rank == 0:  # not to end before it has been reported
        loop("arrived at allreduce 3|continue at allreduce 3")


def faults() -> None:
    """A rank that stops and one that loops, for ever."""
    comm = watched(ABORT)
    assert comm.watch is not None
    comm.watch.directory = Path("run")
    if comm.rank == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    if comm.rank == 3:
        loop()
    meet(comm)


def deserted() -> None:
    """A rank that loops for ever, while the launcher does what it should not."""
    watch._GRACE = 0.5
    comm = watched(abort=1.5)
    assert comm.watch is not None
    comm.watch.directory = Path("run")
    meet(comm)
    Path(f"ready-{comm.rank}").touch()
    if comm.rank == 1:
        loop()
    meet(comm)


if __name__ == "__main__":
    sys.exit(guarded(globals()[sys.argv[1]]))

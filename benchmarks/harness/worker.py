"""The rank side of every benchmark: a task over several pieces in one MPI job, as starts are slow.

``mpirun -n N python -m benchmarks.harness.worker FILE``; FILE is JSON of a ``task``, named like
``module:function``, and of ``pieces``, the keyword arguments of its calls. Every rank calls
``task(comm, folder, **arguments)`` for each piece in turn, with a communicator of its own and a
folder that all ranks share, and leaves what it returns there as ``rank-R.json``. Then rank 0 prints
``ended NUMBER``, with the error behind it where all ranks raised one; the other pieces continue.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apts_mpi.__main__ import guarded

if TYPE_CHECKING:
    from apts_mpi.comm.communicator import Comm
    from apts_mpi.training.loop import Training

PROGRAM = "benchmarks.harness.worker:program"
ENDED = re.compile(r"ended (\d+)(?: (.*))?$")


def leave(folder: Path, value: Any, comm: Comm) -> None:
    """Every rank writes what it has measured to ``rank-R.json``; all return when all have."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".rank-{comm.rank}"
    beside.write_text(json.dumps(value), encoding="utf-8")
    beside.replace(folder / f"rank-{comm.rank}.json")
    comm.agree(None)


def collect(folder: Path, ranks: int) -> list[Any]:
    """What the ranks have left, by rank."""
    paths = [folder / f"rank-{rank}.json" for rank in range(ranks)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def resident() -> int:
    """Bytes of memory of this process; only Linux has them in /proc."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def program(comm: Comm, folder: Path, lines: Sequence[Sequence[str]]) -> None:
    """Task: command lines of the program in turn; "{folder}" in them stands for the piece's."""
    from apts_mpi.cli.main import main

    for line in lines:
        main([word.replace("{folder}", str(folder)) for word in line], comm)


def training(arguments: Sequence[str], comm: Comm) -> Training:
    """A run of the program that is about to begin; for tasks that look into it."""
    from apts_mpi.cli.main import train_settings
    from apts_mpi.training.loop import Training

    return Training(train_settings([*arguments]), comm)


def work(path: Path) -> int:
    """Make the pieces of a file in turn, on every rank."""
    from apts_mpi.comm.communicator import Comm
    from apts_mpi.errors import AgreedError

    asked = json.loads(path.read_text(encoding="utf-8"))
    module, name = asked["task"].split(":")
    task = getattr(import_module(module), name)
    for number, arguments in enumerate(asked["pieces"]):
        comm, failure, folder = Comm(), "", path.parent / str(number)
        try:
            value = task(comm, folder, **arguments)
        except (FloatingPointError, AgreedError) as error:  # raised by all ranks together
            failure = " " + " ".join(str(error).split())
        else:
            leave(folder, value, comm)
        if comm.rank == 0:
            print(f"ended {number}{failure}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: work(Path(sys.argv[1]))))

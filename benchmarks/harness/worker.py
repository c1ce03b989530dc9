"""Several of the program's command lines in one MPI job: ranks start slowly, runs are short.

``mpirun -n N python -m benchmarks.harness.worker FILE``; FILE is a JSON list of argument lists.
Rank 0 says ``ended NUMBER`` after each, with the error, if any, behind it; the others go on.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apts_mpi.__main__ import guarded

if TYPE_CHECKING:
    from apts_mpi.comm.communicator import Comm


def leave(folder: Path, values: dict[str, Any], comm: Comm) -> None:
    """Every rank writes what it has measured to ``rank-R.json``; all return when all have."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".rank-{comm.rank}"
    beside.write_text(json.dumps(values), encoding="utf-8")
    beside.replace(folder / f"rank-{comm.rank}.json")
    comm.agree(None)


def work(path: Path) -> int:
    """Run the command lines of a file in turn, on every rank."""
    from apts_mpi.cli.main import main
    from apts_mpi.comm.communicator import Comm
    from apts_mpi.errors import AgreedError

    for number, arguments in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        comm, failure = Comm(), ""
        try:
            main(arguments, comm)
        except (FloatingPointError, AgreedError) as error:  # raised by all ranks together
            failure = f" {error}"
        if comm.rank == 0:
            print(f"ended {number}{failure}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: work(Path(sys.argv[1]))))


ENDED = re.compile(r"ended (\d+)(?: (.*))?$")

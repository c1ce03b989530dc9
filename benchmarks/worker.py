"""Several of the program's command lines in one MPI job: ranks start slowly, runs are short.

``mpirun -n N python -m benchmarks.worker FILE``; FILE is a JSON list of argument lists. Rank 0 says
``ended NUMBER`` after each, with the error, if any, behind it; the others go on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from apts_mpi.__main__ import guarded


def work(path: Path) -> int:
    """Run the command lines of a file in turn, on every rank."""
    from apts_mpi.cli import main
    from apts_mpi.comm import Comm
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

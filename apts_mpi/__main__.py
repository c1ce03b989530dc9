"""Start the program; whatever goes wrong on one rank ends all of them."""

from __future__ import annotations

import socket
import sys
import traceback
from collections.abc import Callable


def guarded(program: Callable[[], int | None]) -> int:
    """Run a program on this rank; returns its exit status, also where it fails.

    An error all ranks have agreed on is reported by rank 0, with the same status everywhere, but
    for one that its rank raises itself. Such, and any other that leaves ranks waiting for messages
    that never come: its traceback, with rank and host in every line, is written at once and the
    whole job is ended.
    """
    from apts_mpi.comm import job
    from apts_mpi.errors import AgreedError, InputError, in_one_line, own_line
    from apts_mpi.files import streams

    streams.steady()
    try:
        status = program() or 0
        if status == 0 and (lost := streams.lost()) is not None:
            streams.write_error(f"apts_mpi: standard output cannot be written: {lost.strerror}\n")
            return 1
        return status
    except AgreedError as error:
        if not error.reported and job.speaks(*job.world(), error):
            print(f"apts_mpi: {error}", file=sys.stderr, flush=True)
        return error.status
    except BaseException as error:
        rank, size = job.world()
        found = job.launched() if size == 1 else None
        who = f"rank {rank if found is None else found.rank} on {socket.gethostname()}"
        status = 2 if isinstance(error, InputError) else 1
        if isinstance(error, KeyboardInterrupt):
            text, status = f"apts_mpi: interrupted ({who})\n", 130
        elif status == 2:
            text = f"apts_mpi: {error} ({who})\n"
        else:
            lines = [*traceback.format_exc().splitlines(), _summary(error)]
            text = "".join(f"[{who}] {line}\n" for line in lines)
            if own_line(error):  # the user's own code, which is what they look for
                text = f"apts_mpi: {in_one_line(error)} ({who})\n{text}"
        sys.stdout.flush()
        streams.write_error(text)
        if size > 1:
            job.abort(status)
        return status


def _summary(error: BaseException) -> str:
    """The last line, which is seen first: what failed, and in whose file."""
    from apts_mpi.errors import kind_of, own_line

    place = own_line(error)
    place = f"in {place}" if place else "a fault of apts_mpi, to be reported with the lines above"
    return f"apts_mpi: {kind_of(error)} ({place})"


def main() -> int:
    """Entry point of ``python -m apts_mpi``; returns the exit status."""
    from apts_mpi.comm import job

    def program() -> int:
        from apts_mpi.cli import main as cli

        return cli.main(sys.argv[1:])

    status = guarded(program)
    job.leave(status)
    return status


if __name__ == "__main__":
    sys.exit(main())

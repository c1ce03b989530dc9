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
    from apts_mpi import launcher, mpi, streams
    from apts_mpi.errors import AgreedError, InputError

    streams.steady()
    try:
        return program() or 0
    except AgreedError as error:
        if launcher.speaks(*mpi.world(), error):
            print(f"apts_mpi: {error}", file=sys.stderr, flush=True)
        return error.status
    except BaseException as error:
        rank, size = mpi.world()
        who = f"rank {rank} on {socket.gethostname()}"
        status = 2 if isinstance(error, InputError) else 1
        if isinstance(error, KeyboardInterrupt):
            text, status = f"apts_mpi: interrupted ({who})\n", 130
        elif status == 2:
            text = f"apts_mpi: {error} ({who})\n"
        else:
            lines = [*traceback.format_exc().splitlines(), _summary(error)]
            text = "".join(f"[{who}] {line}\n" for line in lines)
        sys.stdout.flush()
        streams.write_error(text)
        if size > 1:
            mpi.abort(status)
        return status


def _summary(error: BaseException) -> str:
    """The line to read first: what failed, and in whose file."""
    what = " ".join(str(error).split())[:300]
    what = f"{type(error).__name__}{': ' * bool(what)}{what}"
    if isinstance(error, MemoryError) or "out of memory" in what.lower():
        what += "; this needs more memory: fewer ranks a node, a smaller --batch, or --stream on"
    package = os.path.dirname(os.path.abspath(__file__))
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((sys.prefix, sys.base_prefix, "<"))]
    theirs = [f for f in own if not os.path.abspath(f.filename).startswith(package + os.sep)]
    if theirs and theirs[-1] in own[-1:]:
        place = f"in {theirs[-1].filename}, line {theirs[-1].lineno}"
    else:
        place = "in apts_mpi itself, a fault to report with the lines above"
    return f"apts_mpi: {what} ({place})"


def main() -> int:
    """Entry point of ``python -m apts_mpi``; returns the exit status."""

    def program() -> int:
        from apts_mpi import cli

        return cli.main(sys.argv[1:])

    return guarded(program)


if __name__ == "__main__":
    sys.exit(main())

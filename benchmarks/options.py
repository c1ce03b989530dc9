"""What the benchmarks of many MPI runs share: their options, their folder, their end."""

from __future__ import annotations

import argparse
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from apts_mpi.errors import InputError
from benchmarks.launch import whole_numbers


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """What is run of a plan, and how."""
    parser.add_argument("--ranks", type=whole_numbers, help="run these of the plan (default all)")
    parser.add_argument("--seeds", type=whole_numbers, help="run these (default those of the plan)")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="MPI jobs at once (default 1)"
    )
    parser.add_argument(
        "--timeout", type=float, default=1800.0, metavar="S", help="seconds a run (default 1800)"
    )
    parser.add_argument(
        "--mnist",
        type=Path,
        metavar="DIR",
        help="folder of the four IDX files (default $APTS_MPI_TEST_DATA/mnist, or "
        "shared/data/mnist beside the checkout)",
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="keeps the shards (default a temporary folder)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="forget the selected runs that are done"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing, write what the runs so far tell"
    )


def check_job_options(parsed: argparse.Namespace) -> None:
    """Their ranges.

    Raises:
        InputError: one is outside.
    """
    if not 1 <= parsed.jobs <= 64 or not 0 < parsed.timeout < 1e6:
        raise InputError("--jobs must be 1 to 64, --timeout positive")


def names(text: str) -> tuple[str, ...]:
    """Parse A,B for argparse."""
    return tuple(name for name in text.split(",") if name)


@contextmanager
def job_folder(work: Path | None) -> Iterator[Path]:
    """A folder for shards and runs; within, SIGTERM is like Ctrl-C: the MPI jobs end too.

    Args:
        work: the folder, which is kept; None makes a temporary one.
    """
    with _terminable(), tempfile.TemporaryDirectory() as temporary:
        folder = (work or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


@contextmanager
def _terminable() -> Iterator[None]:
    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

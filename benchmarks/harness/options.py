"""What the benchmarks of many MPI runs share: their options, their folder, their end."""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from apts_mpi.errors import InputError


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


def whole_numbers(text: str) -> tuple[int, ...]:
    """Parse 0,1,2 for argparse."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0,1,2")
    return numbers


def in_allocation() -> int | None:
    """Tasks of the SLURM allocation this runs in; None outside of one.

    Raises:
        InputError: what SLURM says of it is no number.
    """
    tasks = os.environ.get("SLURM_NTASKS") if "SLURM_JOB_ID" in os.environ else None
    if tasks is None:
        return None
    try:
        return int(tasks)
    except ValueError:
        raise InputError(f"SLURM_NTASKS={tasks}: is no number; give --ranks") from None


def positive(text: str) -> int:
    """Parse a whole number from 1 up for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return value

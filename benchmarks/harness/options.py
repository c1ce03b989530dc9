"""Options of the commands: declarations, parsers of values, and the folder of a command's jobs."""

from __future__ import annotations

import argparse
import math
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from apts_mpi.errors import InputError

Option = Callable[[argparse.ArgumentParser], object]
Number = TypeVar("Number", int, float)


def option(*names: str, **settings: Any) -> Option:
    """Declare an option with the arguments of ``ArgumentParser.add_argument``."""
    return lambda parser: parser.add_argument(*names, **settings)


def whole(name: str, default: int, text: str, *, least: int = 1, most: float = math.inf) -> Option:
    """An option of one whole number."""
    help = f"{text} (default {default})".strip()
    return option(name, type=number(int, least, most), default=default, metavar="N", help=help)


def real(
    name: str, default: float, text: str, *, unit: str = "X", least: float, most: float
) -> Option:
    """An option of one number."""
    help = f"{text} (default {default:g})".strip()
    return option(name, type=number(float, least, most), default=default, metavar=unit, help=help)


def several(
    name: str,
    default: Sequence[int],
    text: str = "numbers of ranks",
    *,
    least: int = 1,
    unit: str | None = None,
) -> Option:
    """An option of whole numbers."""
    return _listed(name, numbers(least), default, text, unit)


def chosen(
    name: str, known: Iterable[str], default: Sequence[str], text: str = "", unit: str | None = None
) -> Option:
    """An option of names that are known."""
    return _listed(name, some_of(known), default, text, unit)


def _listed(
    name: str,
    parse: Callable[[str], object],
    default: Sequence[object],
    text: str,
    unit: str | None,
) -> Option:
    help = f"{text} (default {','.join(map(str, default))})".strip()
    return option(name, type=parse, default=tuple(default), metavar=unit, help=help)


def timeout(default: float, text: str = "seconds per run") -> Option:
    """--timeout S."""
    return real("--timeout", default, text, unit="S", least=1e-9, most=1e6)


MNIST = option(
    "--mnist",
    type=Path,
    metavar="DIR",
    help="folder of the four IDX files, gzipped or not (default $APTS_MPI_TEST_DATA/mnist, or "
    "shared/data/mnist beside the checkout)",
)
WORK = option(
    "--work", type=Path, metavar="DIR", help="keeps the shards (default a temporary folder)"
)


def config(default: Path, text: str) -> Option:
    """--config FILE."""
    return option(
        "--config",
        type=Path,
        default=default,
        metavar="FILE",
        help=f"{text} (default benchmarks/{default.name})",
    )


def number(kind: type[Number], least: Number, most: float = math.inf) -> Callable[[str], Number]:
    """A parser of one number of a range."""
    what = f"{'whole ' if kind is int else ''}number from {least:g}"
    what += f" to {most:g}" if math.isfinite(most) else " up"

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {what}") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {what}")
        return value

    return parse


def numbers(least: int = 0) -> Callable[[str], tuple[int, ...]]:
    """A parser of 0,1,2."""

    def parse(text: str) -> tuple[int, ...]:
        try:
            found = tuple(int(part) for part in text.split(","))
        except ValueError:
            found = ()
        if not found or min(found) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not like {least},{least + 1}")
        return found

    return parse


def some_of(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """A parser of A,B that are known."""

    def parse(text: str) -> tuple[str, ...]:
        found = names(text)
        for name in found or ("",):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return found

    return parse


REPETITIONS = option(
    "--repetitions", type=number(int, 1), metavar="K", help="of every run (default the file's)"
)
JOB_OPTIONS = (  # of what is run of a plan
    option("--ranks", type=numbers(0), help="run these of the plan (default all)"),
    option("--seeds", type=numbers(0), help="run these (default those of the plan)"),
    whole("--jobs", 1, "MPI jobs at once", most=64),
    timeout(1800.0),
    MNIST,
    WORK,
)


def names(text: str) -> tuple[str, ...]:
    """Parse A,B for argparse."""
    return tuple(name for name in text.split(",") if name)


@contextmanager
def job_folder(work: Path | None, *, within: Path | str | None = None) -> Iterator[Path]:
    """A folder for data and jobs; meanwhile SIGTERM is like Ctrl-C: the MPI jobs end too.

    Args:
        work: the folder, which is kept; None makes a temporary one. within: where to make that.
    """
    with _terminable(), tempfile.TemporaryDirectory(dir=within) as temporary:
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


def shared_folder(out: Path) -> Path | None:
    """A folder that all nodes of an allocation see; None where this machine's own is enough."""
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    return None if nodes == "1" else out / "work"


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

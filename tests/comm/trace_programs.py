"""What the tests of traces run on every rank: ``mpirun -n N python trace_programs.py NAME...``."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mpi4py import MPI

from apts_mpi.__main__ import guarded
from apts_mpi.cli import main as cli
from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import AgreedError

FLAGS = ["--iterations", "3", "--seed", "3", "--checkpoint-every", "off"]


def shifted_clocks() -> None:
    """A clock that goes wrong by a known amount is known to do so, within the error told."""
    comm = Comm()
    for each in (1000.0, -7e6, 0.0):
        shift = each * comm.rank

        def now(shift: float = shift) -> float:
            return time.perf_counter() + shift

        reading = comm.read_clock(now)
        assert abs(reading.own - reading.root - shift) <= reading.error + 1e-8, (shift, reading)
        assert reading.error < 0.1
        assert (reading.error == 0.0) == (comm.rank == 0)


def relay() -> None:
    """Pieces come whole, in order, rank after rank, and stop where no more are wanted."""
    comm = Comm()
    made: list[int] = []
    got: list[bytes] = []

    def pieces() -> Iterator[bytes]:
        for size in (1, 3_000_000) if comm.rank else (5,):
            made.append(size)
            yield bytes([65 + comm.rank]) * size

    def take(piece: bytes) -> bool:
        got.append(piece)
        return len(got) < most

    most = 1000
    comm.relay(pieces(), take)
    shape = [(5, 65)] + [(n, 65 + r) for r in range(1, comm.size) for n in (1, 3_000_000)]
    assert [(len(p), p[0]) for p in got] == (shape if comm.rank == 0 else [])
    assert all(set(p) == {p[0]} for p in got)

    made.clear()
    got.clear()
    most = 2
    comm.relay(pieces(), take)
    if comm.rank == 0:
        assert [len(p) for p in got] == [5, 1]
    else:  # one is made ahead
        assert len(made) == (2 if comm.rank == 1 else 1), made


def train(*flags: str) -> None:
    """Train into the folder named first."""
    assert cli.main(["train", *FLAGS, "--out", *flags], Comm()) == 0


def refused() -> None:
    """All ranks refuse what rank 0 cannot write, before anything is made."""
    try:
        train("refused", "--trace", "no/t.json")
    except AgreedError as error:
        assert error.status == 2
        assert str(error).startswith("--trace no/t.json: there is no folder no; make it")
    else:
        raise AssertionError("no error was raised")
    assert not Path("refused").exists()


def plain() -> None:
    """A run without a trace."""
    train("plain")


def shifted() -> None:
    """A traced run whose clocks are apart and drift: 10 ms a second and rank."""
    true, rank = time.perf_counter, Comm().rank
    start = true()
    time.perf_counter = lambda: 1000.0 * (rank + 1) + (true() - start) * (1 + 0.01 * rank)
    try:
        train("shifted", "--trace", "shifted.json")
    finally:
        time.perf_counter = true


def full() -> None:
    """A traced run that finds no room for its trace: all ranks raise the same line."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The summary fits in, the trace does not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, old[1]))
    try:
        train("full", "--trace", "full/trace.json")
    except AgreedError as error:
        assert error.status == 2
        line = str(error)
        assert line.startswith("--trace full/trace.json: cannot be written: File too large")
    else:
        raise AssertionError("no error was raised")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    MPI.COMM_WORLD.Barrier()
    if MPI.COMM_WORLD.Get_rank() == 0:
        left = sorted(path.name for path in Path("full").iterdir())
        assert left == ["config.toml", "metrics.jsonl", "summary.json"], left


def main() -> None:
    """Run the programs that are named, one after another."""
    for name in sys.argv[1:]:
        globals()[name]()


if __name__ == "__main__":
    sys.exit(guarded(main))

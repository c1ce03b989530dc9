"""Times single collectives, ways through in turns.

Before every call all ranks meet at a barrier, then each times the call alone, and the slowest
rank's time is the call's. No way through is measured before another: call by call they alternate,
in an order that rotates, so that whatever else runs in the machine meets all of them.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.message import FusedMessage
from apts_mpi.errors import AgreedError
from apts_mpi.training.provenance import versions
from benchmarks.messages.micro.plan import SCALARS

Call = Callable[[], object]


class Contest:
    """The ways through one operation on one buffer.

    Args:
        size: bytes of the buffer, which is the fused message's vector.
    """

    def __init__(self, comms: tuple[Comm, Comm], operation: str, size: int) -> None:
        timed, untimed = comms
        message = FusedMessage(size // 4, SCALARS)
        self.operation = operation
        self.buffer: np.ndarray = message.vector.numpy()
        buffer, world, place, total = self.buffer, MPI.COMM_WORLD, MPI.IN_PLACE, MPI.SUM
        scalars = [0.0] * SCALARS
        self.calls: dict[str, Call] = {
            "mpi4py": lambda: world.Bcast(buffer, root=0),
            "comm": lambda: timed.broadcast(buffer),
            "comm-untimed": lambda: untimed.broadcast(buffer),
        }
        if operation == "allreduce":
            self.calls = {
                "mpi4py": lambda: world.Allreduce(place, buffer, op=total),
                "comm": lambda: timed.allreduce(buffer),
                "comm-untimed": lambda: untimed.allreduce(buffer),
                "message": lambda: timed.sum_message(message, scalars),
            }

    def verify(self, way: str) -> None:
        """Make sure that a way through does what is timed."""
        rank, ranks = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
        summed = self.operation == "allreduce"
        self.buffer.fill(1.0 if summed or rank == 0 else 0.0)
        self.calls[way]()
        if not (self.buffer == (ranks if summed else 1)).all():
            raise RuntimeError(f"{self.operation} through {way} gives a wrong result")

    def measure(self, ways: Sequence[str], limits: dict[str, Any]) -> np.ndarray:
        """Seconds, of the slowest rank: (ways, calls)."""
        barrier, clock = MPI.COMM_WORLD.Barrier, time.perf_counter
        for way in ways:
            self.verify(way)
        self.buffer.fill(0.0)  # sums stay zero

        def timed(way: str) -> float:
            call = self.calls[way]
            barrier()
            start = clock()
            call()
            return clock() - start

        for _ in range(limits["warmup"]):
            for way in ways:
                timed(way)
        one = np.array([max(timed(way) for way in ways)])
        MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, one, op=MPI.MAX)
        wanted = limits["seconds"] / len(ways) / max(float(one[0]), 1e-6)
        count = round(min(max(wanted, limits["least"]), limits["most"]))
        seconds = np.zeros((len(ways), count))
        for i in range(count):
            for k in range(len(ways)):
                j = (i + k) % len(ways)
                seconds[j, i] = timed(ways[j])
        MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, seconds, op=MPI.MAX)
        return seconds


def task(
    comm: Comm,
    folder: Path,
    operation: str,
    ways: list[str],
    size: int,
    *,
    ranks: int,
    hosts: int,
    limits: dict[str, Any],
) -> dict[str, Any]:
    """Measure the ways through an operation on a buffer of so many bytes."""
    if comm.size != ranks:
        raise AgreedError(f"the launcher started jobs of {comm.size} ranks, not {ranks}")
    (on,) = comm.sum_scalars([float(comm.local_rank == 0)])
    if round(on) != hosts:
        raise AgreedError(
            f"the ranks are on {round(on)} hosts, not {hosts}: give as many --ranks as the "
            "allocation has tasks, or a --launch that spreads them"
        )
    binding = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    gc.disable()
    seconds = Contest((comm, Comm(timed=False)), operation, size).measure(ways, limits)
    gc.enable()
    return {
        "seconds": {
            way: [float(f"{value:.4g}") for value in row]
            for way, row in zip(ways, seconds, strict=True)
        },
        "setup": {"host": comm.host, "threads": 1, "binding": binding, "device": "cpu"},
        "versions": versions(),
    }

"""Times single collectives, ways through in turns; rank 0 prints a line of JSON for each.

Before every call all ranks meet at a barrier, then each times the call alone, and the slowest
rank's time is the call's. No way through is measured before another: call by call they alternate,
in an order that rotates, so that what else goes on in the machine meets all of them.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.message import FusedMessage
from apts_mpi.training.provenance import versions
from benchmarks.messages.micro.plan import MARK, SCALARS

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


def main(argument: str) -> None:
    """Measure what is asked for by JSON: ranks, limits, todo as (operation, ways, bytes)."""
    asked = json.loads(argument)
    comms = (Comm(), Comm(timed=False))
    rank, ranks = comms[0].rank, comms[0].size
    if ranks != asked["ranks"]:
        say(rank, {"error": f"the launcher started jobs of {ranks} ranks, not {asked['ranks']}"})
        sys.exit(1)
    comm = comms[0]
    (hosts,) = comm.sum_scalars([float(comm.local_rank == 0)])
    binding = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    setup = {"host": comm.host, "threads": 1, "binding": binding, "device": "cpu"}
    say(rank, {"versions": versions(), "on": round(hosts), "setup": setup})
    gc.disable()
    for operation, ways, size in asked["todo"]:
        seconds = Contest(comms, operation, size).measure(ways, asked["limits"])
        for way, row in zip(ways, seconds, strict=True):
            times = [float(f"{value:.4g}") for value in row]
            say(rank, {"operation": operation, "through": way, "bytes": size, "seconds": times})
        gc.collect()


def say(rank: int, values: dict[str, Any]) -> None:
    """A line that the benchmark reads."""
    if rank == 0:
        print(MARK + json.dumps(values), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

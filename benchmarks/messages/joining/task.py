"""Times one vector message by all ways to join it, in turns.

All ranks meet at a barrier before a call, and the slowest rank's time is the call's. Call by call
the ways alternate, in an order that rotates, so that whatever else runs meets all of them. What has
left the hosts' network interfaces meanwhile is read before and after.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.compression import message_for
from apts_mpi.comm.message import FusedMessage
from apts_mpi.errors import AgreedError
from apts_mpi.training.provenance import versions
from benchmarks.harness.hosts import INTERFACE

WAYS = tuple(
    f"{way} {form}" for way in ("flat", "hierarchical") for form in ("none", "bf16", "fp16")
)
_SCALARS = (1.0, 2.0, 3.0, 4.0, 5.0)
_CLOSE = {"none": 1e-5, "bf16": 0.05, "fp16": 0.01}  # to the sum, per rank


def sent() -> int:
    """Bytes that have left this host by its interface."""
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == INTERFACE:
            return int(figures.split()[8])
    return 0


class Contest:
    """All ways for a vector of n numbers."""

    def __init__(self, n: int, comms: dict[str, Comm]) -> None:
        self.first = comms["hierarchical"].local_rank == 0
        ranks = comms["flat"].size
        vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(ranks, n))).float()
        self.vector, self.sum = vectors[comms["flat"].rank].clone(), vectors.sum(dim=0)
        self.calls: dict[str, tuple[Comm, FusedMessage]] = {}
        for way in WAYS:
            comm = comms[way.split()[0]]
            message = message_for(way.split()[1], n, len(_SCALARS), torch.device("cpu"), comm)
            self.calls[way] = comm, message

    def call(self, way: str) -> tuple[float, int]:
        """Seconds and, of a host's first rank, bytes that left its host."""
        comm, message = self.calls[way]
        message.vector.copy_(self.vector)
        MPI.COMM_WORLD.Barrier()
        before = sent() if self.first else 0
        MPI.COMM_WORLD.Barrier()
        start = time.perf_counter()
        comm.sum_message(message, _SCALARS)
        seconds = time.perf_counter() - start
        MPI.COMM_WORLD.Barrier()
        return seconds, (sent() - before) if self.first else 0

    def measure(self, repeats: int) -> dict[str, dict[str, list[float]]]:
        """Seconds and bytes of every call, by way."""
        seconds, left = np.zeros((len(WAYS), repeats)), np.zeros((len(WAYS), repeats))
        for way in WAYS:
            self.call(way)
            off = float((self.calls[way][1].vector - self.sum).abs().max()) if len(self.sum) else 0
            if not off < _CLOSE[way.split()[1]] * self.calls[way][0].size:
                raise RuntimeError(f"a sum by {way} is {off} off")
        for i in range(repeats):
            for k in range(len(WAYS)):
                j = (i + k) % len(WAYS)
                seconds[j, i], left[j, i] = self.call(WAYS[j])
        MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, seconds, op=MPI.MAX)
        MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, left)
        return {
            way: {"seconds": [float(f"{x:.4g}") for x in a], "bytes_left": b.tolist()}
            for way, a, b in zip(WAYS, seconds, left, strict=True)
        }


def task(comm: Comm, folder: Path, hosts: int, parameters: int, repeats: int) -> dict[str, Any]:
    """Measure all ways for a vector of so many parameters; the ranks must be on so many hosts."""
    torch.set_num_threads(1)
    comms = {"flat": Comm(timed=False), "hierarchical": Comm(timed=False, hierarchical=True)}
    found = comms["hierarchical"].parts
    if found != hosts:
        raise AgreedError(f"the ranks are on {found} hosts, not {hosts}")
    gc.disable()
    values = Contest(parameters, comms).measure(repeats)
    gc.enable()
    return {"ways": values, "versions": versions()}

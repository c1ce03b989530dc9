"""The explicit collectives, on contiguous preallocated buffers.

Every call is counted, its payload added, and its time split in two: a barrier first, whose time is
waiting for the slowest rank, then the collective itself, whose time is transfer.

Hierarchical joining goes within a host first, then between the hosts' first ranks, then back: what
crosses the network is one vector per host, not one per rank. As a host's ranks get copies of what
its first rank has, and the first ranks' sum is one Allreduce or of identical bits (compression.py),
all ranks end with the same.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from torch import Tensor

from apts_mpi.comm import job
from apts_mpi.comm.clock import Clock
from apts_mpi.comm.compression import CompressedMessage
from apts_mpi.comm.elastic import Guarded
from apts_mpi.comm.job import MPI
from apts_mpi.comm.message import MOST_RANKS
from apts_mpi.errors import InputError


class Watcher(Protocol):
    """What is notified of calls that wait for other ranks: ``watch.Watch``."""

    directory: Path | None

    def enter(self, call: str) -> None:
        """A call begins that returns only when other ranks have arrived, too."""

    def leave(self) -> None:
        """It has returned."""


@dataclass
class Traffic:
    """What one rank has sent; bytes of payload, as handed over once to a joint call.

    Which way and how often an MPI library sends them on is its own affair; so a compressed
    message, of two calls, counts its numbers once, as an Allreduce does its float32 ones.
    """

    vector_allreduces: int = 0
    scalar_allreduces: int = 0
    broadcasts: int = 0
    agreements: int = 0  # Allreduces of a number or two that end a step together
    bytes_allreduced: int = 0
    bytes_broadcast: int = 0
    # Of those allreduced, what this rank hands over to calls between hosts, where joining is
    # hierarchical: 0 on ranks that are not their host's first. Not known where it is flat: 0.
    bytes_between_hosts: int = 0


class Collectives:
    """An MPI communicator, its hosts, and the collectives on it.

    Args:
        communicator: default ``MPI.COMM_WORLD``, which has to have every process that a launcher
            has started. One that is guarded raises RanksLost where a rank has died.
        timed: False leaves out the barriers and clocks, to measure what they cost.
        hierarchical: sums go within hosts, then between them; on all ranks alike.
        host_number: ranks that give the same are taken for one host's, to try hosts out on one
            machine; default those that share memory.

    Raises:
        Misfit: by default, where MPI has fewer ranks than a launcher has started processes.
        AgreedError: no MPI library can be loaded.

    Attributes:
        rank, size: of the communicator. local_rank, local_size: among the ranks of this host.
        host: this host's name. traffic: what has been sent so far. clock: where the time went.
        watch: is notified of every call that waits for other ranks; None for no watch.
        parts: how many exchange vectors with each other: the ranks, or the hosts if hierarchical.
        takes_part: whether this rank is one of those that do.
        gpu_aware: whether MPI takes buffers from a GPU's memory; gpu_aware.py finds out.
        elastic: whether ranks that are left may go on where others die.
    """

    def __init__(
        self,
        communicator: MPI.Comm | Guarded | None = None,
        *,
        timed: bool = True,
        hierarchical: bool = False,
        host_number: int | None = None,
    ) -> None:
        if communicator is None:
            communicator = MPI.COMM_WORLD
        if not hasattr(communicator, "Get_rank"):
            given = f"{type(communicator).__name__} {str(communicator)[:40]!r}"
            raise TypeError(
                f"comm is {given}: give a communicator of mpi4py such as MPI.COMM_WORLD, or leave "
                "it out for all ranks"
            )
        if job.is_loaded() and isinstance(communicator, MPI.Comm):  # not that of one process alone
            if communicator == MPI.COMM_NULL or communicator.Is_inter():
                raise ValueError("comm is MPI.COMM_NULL or between groups: give one of all ranks")
            if communicator == MPI.COMM_WORLD:
                job.check(communicator.Get_size(), job.library_version())
        self.elastic = isinstance(communicator, Guarded)
        self._mpi = cast("MPI.Comm", communicator)
        self.rank: int = self._mpi.Get_rank()
        self.size: int = self._mpi.Get_size()
        if self.size > MOST_RANKS:
            raise InputError(f"{self.size} ranks are more than the {MOST_RANKS} this program joins")
        self.host = socket.gethostname()
        self.clock = Clock(on=timed)
        self.traffic = Traffic()
        self.watch: Watcher | None = None
        node = self._split(host_number)
        self.local_rank: int = node.Get_rank()
        self.local_size: int = node.Get_size()
        self.host_cores = _cores_of_host(node)
        node.Free()
        self.parts, self.takes_part = self.size, True
        self.gpu_aware = False
        self._node: MPI.Comm | None = None
        self._between: MPI.Comm = self._mpi
        if hierarchical:
            self.join_by_hosts(host_number)

    def join_by_hosts(self, host_number: int | None = None) -> None:
        """Sum hierarchically from now on; called by all ranks, before messages are made.

        Args:
            host_number: as the constructor's.
        """
        node = self._split(host_number)
        self.takes_part = node.Get_rank() == 0
        between = self._mpi.Split(0 if self.takes_part else MPI.UNDEFINED, self.rank)
        parts = np.array([between.Get_size() if self.takes_part else 0], dtype=np.int64)
        node.Bcast(parts)
        self.parts = int(parts[0])
        self._node, self._between = node, between

    def _split(self, host_number: int | None) -> MPI.Comm:
        """The ranks of this host."""
        if host_number is None:
            return self._mpi.Split_type(MPI.COMM_TYPE_SHARED)
        return self._mpi.Split(host_number, self.rank)

    def _enter(self, call: str) -> None:
        """Notify the watch of a call that waits for other ranks."""
        if self.watch is not None:
            self.watch.enter(call)

    def _leave(self) -> None:
        if self.watch is not None:
            self.watch.leave()

    def _wait(self) -> None:
        """Wait for all ranks, so that what follows is transfer alone."""
        if self.clock.on:
            with self.clock.phase("wait"):
                self._mpi.Barrier()

    def allreduce(self, buffer: np.ndarray | Tensor, op: str = "SUM") -> None:
        """Replace a contiguous buffer in place by its sum over all ranks; or "MAX", "MIN" of them.

        A tensor may be on a GPU where ``gpu_aware`` is.
        """
        self._enter("allreduce")
        self._wait()
        with self.clock.phase("allreduce", nbytes=buffer.nbytes):
            self._allreduce(buffer, op)
        self._leave()
        self.traffic.bytes_allreduced += buffer.nbytes

    def _allreduce(self, buffer: np.ndarray | Tensor, op: str) -> None:
        operation: MPI.Op = getattr(MPI, op)
        if self._node is None:
            self._mpi.Allreduce(MPI.IN_PLACE, buffer, op=operation)
            return
        self._reduce_within(self._node, buffer, operation)
        if self.takes_part:
            self._between.Allreduce(MPI.IN_PLACE, buffer, op=operation)
            self._count_between(buffer.nbytes)
        self._node.Bcast(buffer)

    def sum_compressed(self, message: CompressedMessage) -> None:
        """Sum a message over all ranks in its form; within hosts in float32 if hierarchical.

        Between those that exchange: every one gets a piece of all vectors, by Alltoall, sums it in
        rank order and hands the sum to all, by Allgather. So all have the same bits, whatever the
        MPI library's algorithms. One wait is before it all; later ones are in the transfer's time.
        """
        self._enter("allreduce")
        self._wait()
        with self.clock.phase("allreduce", nbytes=message.nbytes):
            if self._node is not None:
                self._reduce_within(self._node, message.host, MPI.SUM)
            if self.takes_part:
                with self.clock.phase("algebra", "compress"):
                    message.pack()
                self._between.Alltoall(message.outgoing, message.incoming)
                with self.clock.phase("algebra", "sum of a piece"):
                    message.combine()
                self._between.Allgather(message.own, message.everyone)
                with self.clock.phase("algebra", "decompress"):
                    message.unpack()
            if self._node is not None:
                self._count_between(message.nbytes if self.takes_part else 0)
                self._node.Bcast(message.host)
        self._leave()
        flat = self._node is None
        self.traffic.bytes_allreduced += message.nbytes if flat else message.host.nbytes

    def _reduce_within(self, node: MPI.Comm, buffer: np.ndarray | Tensor, op: MPI.Op) -> None:
        """To the host's first rank; the other ranks' buffers stay as they are."""
        if self.takes_part:
            node.Reduce(MPI.IN_PLACE, buffer, op=op)
        else:
            node.Reduce(buffer, None, op=op)

    def _count_between(self, nbytes: int) -> None:
        if self.parts > 1:
            self.traffic.bytes_between_hosts += nbytes

    def broadcast(self, buffer: np.ndarray, root: int = 0) -> None:
        """Overwrite a contiguous buffer on every rank by the root's."""
        self._enter("broadcast")
        self._wait()
        with self.clock.phase("broadcast", nbytes=buffer.nbytes):
            self._mpi.Bcast(buffer, root=root)
        self._leave()
        self.traffic.broadcasts += 1
        self.traffic.bytes_broadcast += buffer.nbytes

    def broadcast_tensor(self, tensor: Tensor, root: int = 0) -> None:
        """Overwrite a contiguous tensor on every rank by the root's."""
        host = tensor.detach().cpu()
        self.broadcast(host.numpy(), root)
        if tensor.device.type != "cpu":
            tensor.copy_(host)

    def broadcast_text(self, text: str, root: int = 0) -> str:
        """The root's text, on every rank."""
        data = self.broadcast_bytes(text.encode(errors="surrogatepass"), root)
        return data.decode(errors="surrogatepass")

    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        """The root's bytes, on every rank; two explicit messages, their number and they."""
        length = np.array([len(data)], dtype=np.int64)
        self.broadcast(length, root)
        buffer = np.zeros(int(length[0]), dtype=np.uint8)
        if self.rank == root:
            buffer[:] = np.frombuffer(data, dtype=np.uint8)
        self.broadcast(buffer, root)
        return buffer.tobytes()


def _cores_of_host(node: MPI.Comm) -> int:
    """Cores that this host's ranks may use together, after any binding by the launcher."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    mask = np.zeros(8192, dtype=np.uint8)
    mask[[core for core in os.sched_getaffinity(0) if core < len(mask)]] = 1
    if node.Get_size() > 1:
        node.Allreduce(MPI.IN_PLACE, mask, op=MPI.MAX)
    return int(mask.sum())

"""What the tests of messages run on every rank: ``mpirun -n N python programs.py mpi.NAME``.

Each function asserts on every rank; a failed assertion ends the job with its traceback, as an
error in the program itself would.
"""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import torch

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.message import DIGITS, FLAGS, FusedMessage
from apts_mpi.errors import AgreedError, InputError


def fused_sum() -> None:
    """A fused message sums vector and scalars; scalars exactly, and NaN reaches all."""
    comm = Comm()
    message = FusedMessage(1000, 3)
    message.vector.fill_(comm.rank + 1)
    values = [0.1 * (comm.rank + 1), -1e-12, 1e9 + comm.rank]
    sums = comm.sum_message(message, values)
    n = comm.size
    assert bool((message.vector == n * (n + 1) / 2).all())
    assert abs(sums[0] - 0.1 * n * (n + 1) / 2) < 1e-14 * n * n
    assert abs(sums[1] + n * 1e-12) < n * 3e-16
    assert sums[2] == n * 1e9 + n * (n - 1) / 2
    (poisoned,) = comm.sum_message(message, [float("nan") if comm.rank == n - 1 else 1.0])
    assert np.isnan(poisoned)
    assert comm.traffic.vector_allreduces == 2
    assert comm.traffic.bytes_allreduced == 2 * 4 * (1000 + 3 * DIGITS + FLAGS)


def agreement() -> None:
    """An input error on one rank becomes the same error on all, at the end of the step."""
    comm = Comm()
    with comm.together():
        pass
    try:
        with comm.together(status=1):
            if comm.rank == comm.size - 1:
                raise InputError("the line")
    except AgreedError as caught:
        assert (str(caught), caught.status) == ("the line", 1)
    else:
        raise AssertionError("no error was raised")


def refused_by_the_machine() -> None:
    """A file that some ranks may not read is the same line on all."""
    comm = Comm()
    try:
        with comm.together():
            if comm.rank > 0:
                raise PermissionError(13, "Permission denied", "shard.h5")
    except AgreedError as caught:
        assert str(caught).endswith(f"Permission denied: 'shard.h5' (rank 1 on {comm.host})")
        assert caught.status == 1
    else:
        raise AssertionError("no error was raised")


def faults_of_the_program() -> None:
    """Of ranks that fail by a fault of the program the lowest raises it, all others its line."""
    comm = Comm()
    for fault in (ValueError("planted"), OSError("planted, without a number")):
        found: Exception | None = None
        try:
            with comm.together():
                if comm.rank > 0:
                    raise fault
        except (AgreedError, ValueError, OSError) as caught:
            found = caught
        if comm.rank == 1:
            assert found is fault
        else:
            assert isinstance(found, AgreedError)
            assert found.reported


def fault_in_a_step() -> None:
    """A fault of the program on one rank, in a step that all end together."""
    comm = Comm()
    with comm.together():
        if comm.rank == 1:
            raise ZeroDivisionError("planted")


def diverged_replicas() -> None:
    """Copies of the parameters that differ are noticed on every rank."""
    comm = Comm()
    vector = torch.ones(100)
    comm.check_replicas(vector)
    if comm.rank == 1:
        vector[7] += 1e-7
    try:
        comm.check_replicas(vector)
    except AgreedError as caught:
        assert "copies of the parameters differ" in str(caught)
    else:
        raise AssertionError("no error was raised")


def killed_rank() -> None:
    """Rank 1 disappears while the others wait for it."""
    comm = Comm()
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.sum_scalars([1.0])
    time.sleep(60)

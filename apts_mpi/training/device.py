"""Which device and how many threads a rank computes with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.trace import refusal
from apts_mpi.errors import InputError
from apts_mpi.settings.config import TrainConfig


@dataclass(frozen=True)
class Placement:
    """Device and threads of this rank; whether its host has fewer cores than threads."""

    device: torch.device
    threads: int
    oversubscribed: bool


def place(config: TrainConfig, comm: Comm, say: Callable[[str], object]) -> Placement:
    """Bind this rank to its device and threads, shown in one line; every rank calls it.

    Raises:
        AgreedError: on every rank, where some rank has no such device or the trace no place.
    """
    with comm.together():
        if config.device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                f"--device cuda: rank {comm.rank} on {comm.host} sees no GPU; use --device cpu"
            )
        if config.trace and comm.rank == 0:  # here, to save a message of its own
            error = refusal(config.trace, config.out)
            if error is not None:
                raise error
    # All ranks alike: what they compute redundantly must round alike.
    wanted = config.threads or max(comm.host_cores // comm.local_size, 1)
    least = -np.array([wanted, config.device != "cpu" and torch.cuda.is_available()], float)
    comm.maximum(least)
    threads = int(-least[0])
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = config.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    torch.backends.cudnn.deterministic = True  # a run repeats bit for bit
    device = torch.device("cpu")
    if least[1] < 0:
        device = torch.device("cuda", comm.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    used = comm.local_size * threads
    oversubscribed = used > comm.host_cores
    line = (
        f"{comm.size} rank{'s' * (comm.size > 1)}, {comm.local_size} on this host with "
        f"{comm.host_cores} cores, {threads} thread{'s' * (threads > 1)} each, on {device.type}"
    )
    if oversubscribed:
        line += f"; oversubscribed {used / comm.host_cores:.1f} times: wall times mean little"
    say(line)
    if config.precision == "tf32" and device.type != "cuda":
        say(f"--precision tf32 is a GPU's; {device.type} computes in fp32")
    return Placement(device, threads, oversubscribed)

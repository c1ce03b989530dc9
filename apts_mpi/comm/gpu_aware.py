"""Messages straight from a GPU's memory, where the MPI library can take them from there.

Opt-in, as a library that cannot may crash on such an address rather than say so. Hence three
questions, each ended by all ranks together: what does every rank's library say of itself; does an
Allreduce of a few numbers in GPU memory return; is its sum right. Without three times yes from all
ranks messages are staged through page-locked host memory, as they are by default.

Never run with an MPI library that takes GPU memory: the decisions are tested with stand-ins, the
message on tensors of the CPU.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping

import torch

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.job import MPI
from apts_mpi.comm.message import synchronize
from apts_mpi.errors import InputError

_PROBE = 1024  # numbers
# Libraries that take GPU memory only where a variable says so.
_SWITCHES = ("MPICH_GPU_SUPPORT_ENABLED", "MPIR_CVAR_ENABLE_GPU", "MV2_USE_CUDA")

Query = Callable[[], int]


def query() -> Query | None:
    """``MPIX_Query_cuda_support`` of the MPI library in use, an extension of Open MPI and MPICH."""
    loaded = getattr(os, "RTLD_NOLOAD", 0) | os.RTLD_NOW  # no library that is not in use
    for path in (None, MPI.__file__, "libmpi.so.40", "libmpi.so.12"):
        try:
            function: Query = ctypes.CDLL(path, mode=loaded).MPIX_Query_cuda_support
        except (OSError, AttributeError):
            continue
        return function
    return None


def library_says(ask: Query | None, environment: Mapping[str, str]) -> str | None:
    """Why the MPI library does not take GPU memory, by its own word; None if it does."""
    for name in _SWITCHES:
        if environment.get(name) == "0":
            return f"{name} is 0"
    if ask is None:
        on = any(environment.get(name) == "1" for name in _SWITCHES)
        return None if on else "the MPI library does not say that it takes GPU memory"
    return None if ask() else "the MPI library is built without it, by MPIX_Query_cuda_support"


def enable(
    comm: Comm,
    device: torch.device,
    say: Callable[[str], object],
    *,
    ask: Query | str | None = "library",
    environment: Mapping[str, str] | None = None,
) -> bool:
    """Send messages from the memory of the ranks' devices, if all can; called by all ranks.

    Sets ``comm.gpu_aware``, which messages made later follow.

    Args:
        say: takes the one line that says what was found, the same on all ranks.
        ask, environment: stand-ins for the library's word and for ``os.environ``, for tests.

    Returns:
        Whether they can; the same on all ranks.
    """
    asked = query() if isinstance(ask, str) else ask
    reason = None if device.type == "cuda" else f"the device is {device.type}"
    reason = reason or library_says(asked, os.environ if environment is None else environment)
    found = _first(comm, reason)
    if found is None:
        found = _first(comm, _probe(comm, device))
    comm.gpu_aware = found is None
    say("messages go from GPU memory" if found is None else f"messages go by the host: {found}")
    return comm.gpu_aware


def _first(comm: Comm, reason: str | None) -> str | None:
    """The lowest rank's reason, on every rank; None where none has any."""
    text = f"rank {comm.rank} on {comm.host}: {reason}"
    return comm.first_error(None if reason is None else InputError(text))


def _probe(comm: Comm, device: torch.device) -> str | None:
    """Why a sum in the device's memory fails; None if it does not."""
    numbers = torch.full((_PROBE,), float(comm.rank + 1), device=device)
    synchronize(device)
    try:
        comm.allreduce(numbers)
    except (MPI.Exception, BufferError, TypeError, ValueError) as error:
        return f"an Allreduce of it fails ({error})"
    right = comm.size * (comm.size + 1) / 2
    return None if bool((numbers == right).all()) else "an Allreduce of it gives a wrong sum"

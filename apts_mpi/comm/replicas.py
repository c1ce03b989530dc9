"""What ranks have besides the parameters that are trained: frozen ones, and a module's buffers.

Trained parameters stay equal by the messages of training. All else is rank 0's at the start, as
every rank's own function or generator may have drawn other values (torch's own
DistributedDataParallel does the same).
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.files.forms import as_bytes

log = logging.getLogger("apts_mpi")

_PIECE = 1 << 26  # bytes of a message


def broadcast_module(module: nn.Module, comm: Comm) -> None:
    """Give a module on every rank rank 0's parameters and buffers; every rank calls it.

    A line of the log names the first frozen parameter or buffer that differed. Parameters that
    are trained are expected to differ, where ranks have seeds of their own, and are not named.

    Raises:
        AgreedError: on every rank, where the ranks' modules are not of the same form.
        ValueError: a tensor is sparse, or has no numbers of its own.
    """
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    take_rank_zeros(trained, comm, logged=False)
    take_rank_zeros(untrained(module), comm)


def untrained(module: nn.Module) -> dict[str, Tensor]:
    """A module's frozen parameters and buffers by name, also those that its state leaves out."""
    frozen = {name: p.detach() for name, p in module.named_parameters() if not p.requires_grad}
    return {**frozen, **dict(module.named_buffers())}


def take_rank_zeros(tensors: Mapping[str, Tensor], comm: Comm, *, logged: bool = True) -> None:
    """Overwrite tensors on every rank by rank 0's where any rank's differ; every rank calls it.

    Args:
        tensors: by name, of any type and shape, the same ones on every rank.
        logged: whether a line of the log names the first that differed.

    Raises:
        AgreedError: on every rank, where other tensors are there on some.
        ValueError: a tensor is sparse, or has no numbers of its own.
    """
    if comm.size == 1:
        return
    differing = differ(tensors, comm)
    for name in differing:
        _broadcast(tensors[name], comm)
    if differing and logged and comm.rank == 0:
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        log.warning(
            "%s%s differed from rank to rank: rank 0's are taken by all (draw them from torch's, "
            "numpy's or random's own generator, or from a fixed seed)",
            differing[0],
            more,
        )


def differ(tensors: Mapping[str, Tensor], comm: Comm) -> list[str]:
    """The names of those that are not the same on all ranks, bit for bit; every rank calls it.

    Raises:
        AgreedError, ValueError: as ``take_rank_zeros``.
    """
    if comm.size == 1 or not tensors:
        return []
    forms = [f"{name!r} {t.dtype} {t.layout} {tuple(t.shape)}" for name, t in tensors.items()]
    comm.require_same("a network", forms)
    sums = np.array([_checksum(name, t) for name, t in tensors.items()], dtype=np.float64)
    both = np.concatenate((sums, -sums))
    comm.maximum(both)
    unlike = both[: len(sums)] != -both[len(sums) :]
    return [name for name, other in zip(tensors, unlike, strict=True) if other]


def _checksum(name: str, tensor: Tensor) -> float:
    """Of 32 bits, which a float64 has exactly."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise ValueError(f"{name} is {tensor.layout} on {tensor.device}: ranks exchange dense ones")
    return float(zlib.crc32(as_bytes(tensor.cpu()).numpy().data))


@torch.no_grad()
def _broadcast(tensor: Tensor, comm: Comm) -> None:
    bits = as_bytes(tensor.cpu()).reshape(-1)
    for piece in bits.split(_PIECE):
        comm.broadcast_tensor(piece)
    tensor.copy_(bits.view(tensor.dtype).view(tensor.shape))

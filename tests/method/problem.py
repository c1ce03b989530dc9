"""A small classification problem that the programs of the methods share, and its parts on ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apts_mpi.comm.communicator import Comm
from tests.devices import DEVICE

SAMPLES = 97  # a prime: no number of ranks divides it


def data() -> tuple[Tensor, Tensor]:
    """The same small classification problem on every rank."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, 6)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] ** 2 > 0.5).astype(np.int64) + (x[:, 2] > 1)
    return torch.as_tensor(x), torch.as_tensor(y)


def network(seed: int = 0) -> nn.Module:
    """A small network, float32."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


def uneven_part(comm: Comm) -> slice:
    """Rank d has about d + 1 shares of the samples."""
    ends = np.cumsum(np.arange(1, comm.size + 1)) * SAMPLES // (comm.size * (comm.size + 1) // 2)
    starts = np.concatenate(([0], ends))
    return slice(int(starts[comm.rank]), int(ends[comm.rank]))


def closure_over(module: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """Mean cross-entropy."""
    return lambda: F.cross_entropy(module(x), y)


def own_communicator() -> Any:
    """A communicator of this rank alone."""
    from mpi4py import MPI

    return MPI.COMM_SELF


def minibatches(step: int, ranks: int) -> list[Tensor]:
    """Indices of every rank's minibatch of a step, uneven: rank d has about d + 1 shares."""
    order = torch.randperm(SAMPLES, generator=torch.Generator(DEVICE).manual_seed(step))[:40]
    shares = ranks * (ranks + 1) // 2
    ends = [40 * (d + 1) * (d + 2) // 2 // shares for d in range(ranks)]
    return [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def parameters(module: nn.Module) -> Tensor:
    """(n,) copy."""
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def load(module: nn.Module, vector: Tensor) -> None:
    """Copy (n,) values into the parameters; torch's own function would make them views."""
    offset = 0
    for p in module.parameters():
        p.data.copy_(vector[offset : offset + p.numel()].view_as(p))
        offset += p.numel()

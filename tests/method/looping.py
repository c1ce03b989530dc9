"""A small network and loops over it, for tests of the classes."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi import StochasticAPTS

torch.set_num_threads(1)
STEPS = 3  # local ones: iterations of 4 and then 3 minibatches
X = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0.5)


def network(seed: int = 0, *, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))


def minibatches(count: int, seed: int = 0) -> list[Tensor]:
    """Indices; every fourth is smaller."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(16, 16, 16, 5)[k % 4] for k in range(count)]
    return [torch.randperm(len(X), generator=generator)[:size] for size in sizes]


def loss_of(net: nn.Module, index: Tensor) -> Tensor:
    return cross_entropy(net(X[index]), Y[index])


def made(net: nn.Module, params: Any = None, **options: Any) -> StochasticAPTS:
    options = {"local_steps": STEPS, **options}
    return StochasticAPTS(net.parameters() if params is None else params, **options)


def trained(optimizer: StochasticAPTS, net: nn.Module, indices: list[Tensor]) -> list[float]:
    """The losses of a loop over minibatches, weighed by their samples."""
    return [float(optimizer.step(partial(loss_of, net, i), samples=len(i))) for i in indices]


def theta(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def saved(optimizer: Any) -> Any:
    """A state through a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)

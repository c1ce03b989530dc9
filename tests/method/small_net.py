"""A small network, its samples, and its gradient by plain autograd."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.devices import DEVICE

torch.set_num_threads(1)


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, reduction="none")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.first(x).tanh())
        return outputs


def module(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def samples(count: int = 23) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(1)
    x = torch.randn(count, 4, generator=generator)
    return x, torch.randint(0, 3, (count,), generator=generator)


def concatenated(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def plain_gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """By autograd on an untouched copy, one pass, torch's own mean."""
    twin = copy.deepcopy(net)
    for p in twin.parameters():
        p.grad = None
    cross_entropy(twin(x), y).backward()
    return concatenated(p.grad for p in twin.parameters() if p.grad is not None)

"""BatchNorm's running statistics for the average of a user's own loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from apts_mpi import StochasticAPTS
from apts_mpi.method.batch_norm import SAMPLES

X = 3.0 + 2.0 * torch.randn(96, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 3.0).long()


def trained() -> tuple[nn.Sequential, nn.BatchNorm1d, StochasticAPTS]:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)
    net = nn.Sequential(nn.Linear(5, 8), norm, nn.ReLU(), nn.Linear(8, 2))
    optimizer = StochasticAPTS(net.parameters(), local_steps=3)
    for k in range(17):
        optimizer.step(lambda: cross_entropy(net(X[k::17]), Y[k::17]))  # noqa: B023
    return net, norm, optimizer


@pytest.mark.parametrize("labelled", [False, True])
def test_they_are_the_averages_within_and_what_they_were_afterwards(labelled: bool) -> None:
    net, norm, optimizer = trained()
    before = {name: each.clone() for name, each in norm.named_buffers()}
    batches: list[Any] = [(X[:48], Y[:48]), (X[48:], Y[48:])] if labelled else [X[:48], X[48:]]
    with optimizer.averaged(net, batches):
        with torch.no_grad():
            inner = net[0](X)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert torch.allclose(norm.running_mean, inner.mean(0), atol=1e-5)
        both = torch.stack([inner[:48].var(0), inner[48:].var(0)]).mean(0)
        assert torch.allclose(norm.running_var, both, rtol=1e-4)
        assert norm.momentum == 0.1
    assert all(torch.equal(each, before[name]) for name, each in norm.named_buffers())


def test_a_loader_is_read_no_further_than_needed() -> None:
    net, _, optimizer = trained()

    def endless() -> Iterable[torch.Tensor]:
        for _ in range(SAMPLES // len(X) + 1):
            yield X
        pytest.fail("more than enough")

    with optimizer.averaged(net, endless()):
        pass


def test_misuse_is_refused_with_the_remedy_and_trains_on() -> None:
    net, norm, optimizer = trained()
    with pytest.raises(TypeError, match="begins with a dict: give tensors"):
        optimizer.averaged(net, [{"x": X}]).__enter__()
    with pytest.raises(ValueError, match="no batch of two samples or more"):
        optimizer.averaged(net, [X[:1]]).__enter__()
    assert norm.momentum == 0.1
    net.eval()
    with pytest.raises(ValueError, match=r"call model.eval\(\) within"):
        optimizer.averaged(net, [X]).__enter__()
    net.train()
    optimizer.step(lambda: cross_entropy(net(X), Y))

"""Running statistics of BatchNorm: made for those that train, left to those that are frozen."""

from __future__ import annotations

import torch
from torch import nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.networks.losses import cross_entropy
from apts_mpi.training.batch_norm import RunningStatistics
from apts_mpi.training.flat_network import FlatNetwork
from apts_mpi.training.samples import Held


def test_frozen_layers_keep_theirs_and_their_mode() -> None:
    torch.manual_seed(0)
    frozen, free = nn.BatchNorm1d(4).eval(), nn.BatchNorm1d(4)
    frozen.running_mean = torch.arange(4.0)
    module = nn.Sequential(frozen, free)
    module.register_buffer("other", torch.ones(2))
    x, y = torch.randn(40, 4), torch.zeros(40).long()
    network = FlatNetwork(module, cross_entropy)
    statistics = RunningStatistics(network, [Held(x, y, 40)], batch=40, comm=Comm())
    assert list(statistics.others()) == ["other", *(f"0.{n}" for n, _ in frozen.named_buffers())]
    statistics.refresh()
    assert torch.equal(frozen.running_mean, torch.arange(4.0))
    assert free.running_mean is not None
    with torch.no_grad():
        assert torch.allclose(free.running_mean, frozen(x).mean(0), atol=1e-6)
    assert [part.training for part in module.modules()] == [True, False, True]

"""Muon beside DDP, whose polar factors are not torch's, takes the steps of torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.messages.network.task import OPTIMIZERS


def test_muon_of_the_reference_takes_the_steps_of_torchs_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _muon = pytest.importorskip("torch.optim._muon", reason="torch before 2.9 has no Muon")
    polar = _muon._zeropower_via_newtonschulz
    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", polar)  # to be restored
    torch.manual_seed(0)
    weights, gradients = ([torch.randn(s) for s in ((12, 30), (20, 12), (3, 20))] for _ in range(2))
    after = []
    for own in (False, True):
        parameters = [nn.Parameter(w.clone()) for w in weights]
        optimizers = OPTIMIZERS["muon"](parameters, 0.1)
        if not own:
            _muon._zeropower_via_newtonschulz = polar
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
        after.append([parameter.detach() for parameter in parameters])
    for k, (w, of_torch, of_ours) in enumerate(zip(weights, *after, strict=True)):
        assert not torch.equal(of_torch, w)
        assert torch.equal(of_ours, of_torch) == (k == 2)  # the last one is Adam's
        assert torch.allclose(of_ours, of_torch, atol=0.1 * 0.03)  # bfloat16 has 8 bits

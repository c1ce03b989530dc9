"""Autocast around the loop or in the closure: the same networks, and algebra in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.method.driving import Deterministic, Stochastic


def under_autocast(where: str) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(400, 20)
    y = (x[:, :2].sum(1) > 0).long()
    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = Stochastic(net.parameters(), local_steps=5)
    half = torch.autocast("cpu", torch.bfloat16, enabled=where != "around")

    def minibatch() -> tuple[Callable[[], Tensor], int]:
        index = torch.randint(400, (64,))

        def closure() -> Tensor:
            with half if where != "around" else nullcontext():
                return cross_entropy(net(x[index]), y[index])

        return closure, 64

    with torch.autocast("cpu", torch.bfloat16, enabled=where != "inside"):
        for _ in range(10):
            result = optimizer.step(minibatch)
        seen = [net(x).detach()]  # with gradients on, so that autocast keeps its casts
        with optimizer.averaged():
            seen.append(net(x).detach())
        seen.append(net(x).detach())
    with torch.autocast("cpu", torch.bfloat16, enabled=where != "inside", cache_enabled=False):
        fresh = [net(x).detach()]
        with optimizer.averaged():
            fresh.append(net(x).detach())
    assert all(map(torch.equal, seen, [*fresh, fresh[0]])), "casts of the parameters as they are"
    accuracy = float((seen[0].argmax(1) == y).float().mean())
    return {"theta": optimizer.flat.vector.clone(), "rho": result.rho, "accuracy": accuracy}


def test_autocast_around_the_loop_is_autocast_in_the_closure() -> None:
    inside, around, both = map(under_autocast, ("inside", "around", "both"))
    assert torch.equal(inside["theta"], around["theta"])
    assert torch.equal(inside["theta"], both["theta"])
    assert around["accuracy"] > 0.9


def test_the_algebra_is_in_float32_under_autocast() -> None:
    """L-SR1's products of matrices and vectors would be rounded to bfloat16."""

    def run(*, autocast: bool) -> Tensor:
        torch.manual_seed(0)
        x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(2, (40,))
        weight = nn.Parameter(torch.randn(2, 6))
        apts = Deterministic([weight])

        def closure() -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return cross_entropy(x @ weight.double().T, y)

        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for _ in range(6):
                apts.step(closure, samples=40, same_batch=True)
        return weight.detach().clone()

    assert torch.equal(run(autocast=True), run(autocast=False))

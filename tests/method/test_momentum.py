"""Momentum: a share of the last accepted correction, inside the ball and under the same test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.method.driving import Deterministic

STEP = 0.01  # far inside every radius below


class Bowl(nn.Module):
    """f = 1/2 |x|^2 from (3, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([3.0, 4.0]))

    def forward(self) -> Tensor:
        return 0.5 * (self.x**2).sum()


def run(**options: Any) -> tuple[Deterministic, Bowl]:
    bowl = Bowl()
    settings = {
        "local_solver": "first-order",
        "local_steps": 1,
        "join": "average",
        "radius": 1.0,
        **options,
    }
    optimizer = Deterministic(bowl.parameters(), **settings)
    optimizer.options = replace(
        optimizer.options, global_step=False
    )  # its gradients still are joined, as momentum needs them
    return optimizer, bowl


def moves(optimizer: Deterministic, closure: Callable[[], Tensor], count: int) -> list[Tensor]:
    taken = []
    for _ in range(count):
        before = optimizer.flat.vector.clone()
        optimizer.step(closure, samples=1, same_batch=True)
        taken.append(optimizer.flat.vector - before)
    return taken


def corrections_alone(
    optimizer: Deterministic, closure: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """The second step with momentum and, from the same state, without; and the first step."""
    (first,) = moves(optimizer, closure, 1)
    state, theta = optimizer.state_dict(), optimizer.flat.vector.clone()
    (with_momentum,) = moves(optimizer, closure, 1)
    optimizer.flat.vector.copy_(theta)
    optimizer.load_state_dict(state)
    optimizer.options = replace(optimizer.options, momentum=0.0)
    (without,) = moves(optimizer, closure, 1)
    return with_momentum - without, first


def test_half_of_the_accepted_correction_is_added_to_the_next() -> None:
    optimizer, bowl = run()
    optimizer._subdomains[0].radius = optimizer.now.global_radius = STEP
    added, first = corrections_alone(optimizer, bowl)
    assert float(first.norm()) > 0
    assert torch.allclose(added, 0.5 * first, atol=1e-6)


def test_momentum_is_cut_to_what_the_ball_leaves() -> None:
    optimizer, bowl = run(radius=1.0)
    optimizer._subdomains[0].radius = optimizer.now.global_radius = 0.9
    (first,) = moves(optimizer, bowl, 1)
    optimizer.now.radius, optimizer._subdomains[0].radius = 1.0, 0.9
    # 0.9 + 0.5 * 0.9 would leave the ball
    (second,) = moves(optimizer, bowl, 1)
    assert abs(float(first.norm()) - 0.9) < 1e-6
    assert 1.0 - 1e-5 < float(second.norm()) <= 1.0 + 1e-5


def test_a_rejected_correction_leaves_no_momentum() -> None:
    optimizer, bowl = run()
    moves(optimizer, bowl, 1)
    assert optimizer.state_dict()["moving"]
    calls = 0

    def rising() -> Tensor:
        nonlocal calls
        calls += 1
        loss = bowl()
        return loss + 100.0 if calls == 2 else loss  # the joined trial, after the local one

    result = optimizer.step(rising, samples=1, same_batch=True)
    assert result.local_accepted == 1
    assert not result.accepted
    assert not optimizer.state_dict()["moving"]


def test_momentum_that_would_undo_the_correction_is_left_out() -> None:
    optimizer, bowl = run()
    optimizer._subdomains[0].radius = optimizer.now.global_radius = STEP
    moves(optimizer, bowl, 1)
    optimizer._step.copy_(50.0 * STEP * torch.tensor([0.6, 0.8]))  # uphill, longer than a step
    (step,) = moves(optimizer, bowl, 1)
    assert float(step @ torch.tensor([0.6, 0.8])) < 0  # downhill still
    # Cosine -1: what was taken is the correction alone.
    assert torch.allclose(step / step.norm(), torch.tensor([-0.6, -0.8]), atol=1e-3)

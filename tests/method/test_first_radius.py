"""The search for the first radius: a step is doubled while the loss falls; where none is found."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi.method.first_radius import FirstStep, search
from tests.method.driving import Stochastic

FIRST, LARGEST = 1e-5, 1.0


def searched(loss_at: Callable[[float], float], slope: float) -> FirstStep:
    return search(loss_at, loss=loss_at(0.0), slope=slope, first=FIRST, largest=LARGEST)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    slope=st.floats(1e-2, 1e4),
    minimum=st.floats(4e-5, 10.0),
    level=st.floats(-1e3, 1e3),
    rounded=st.booleans(),
)
def test_a_parabola_is_followed_to_its_minimum_and_no_further_than_twice(
    slope: float, minimum: float, level: float, rounded: bool
) -> None:
    """Also where the loss is rounded to bfloat16, unless rounding hides the whole descent."""

    def exact(length: float) -> float:
        return level - slope * length * (1.0 - length / (2.0 * minimum))

    def loss_at(length: float) -> float:
        value = exact(length)
        return float(torch.tensor(value).bfloat16()) if rounded else value

    visible = abs(level) * (0.02 if rounded else 1e-12) + 1e-30
    if slope * min(minimum, LARGEST) / 2.0 < visible:
        return
    found = searched(loss_at, slope)
    assert not found.why
    assert exact(found.length) < exact(0.0)
    # Equal losses left and right of the minimum are not falling any more.
    assert found.length < 2.0 * minimum
    if not rounded:
        assert found.length >= min(minimum / 2.0, LARGEST / 2.0 * 0.5)


@pytest.mark.parametrize(
    ("loss_at", "why"),
    [
        (lambda length: 1.0 + length, "rises by 1e-05"),
        (lambda length: 0.7, "stays 0.7"),
        (lambda length: math.nan if length else 1.0, "rises by nan"),
    ],
)
def test_a_search_that_finds_nothing_says_why(loss_at: Callable[[float], float], why: str) -> None:
    found = searched(loss_at, 1e4)
    assert math.isnan(found.length)
    assert not found.noisy
    assert why in found.why


def test_a_loss_that_is_another_one_each_time_is_told() -> None:
    calls = iter(range(100))
    found = searched(lambda length: 1.0 + 0.1 * next(calls), 1e4)
    assert math.isnan(found.length)
    assert found.noisy
    assert "1 and then" in found.why


def test_a_long_search_looks_at_the_start_once() -> None:
    seen = list[float]()

    def loss_at(length: float) -> float:
        seen.append(length)
        return 5.0 - length

    found = searched(loss_at, 1.0)
    assert found.length == max(seen)
    assert found.length >= LARGEST / 2.0
    assert seen.count(0.0) == 1, "the loss at the start that it is given"


# ---- where the first radius cannot be found ------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, logger="apts_mpi"):
        yield caplog


def test_a_loss_that_cannot_be_repeated_is_told_and_trains(
    heard: pytest.LogCaptureFixture,
) -> None:
    own = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    x = torch.randn(400, 10)
    y = (x[:, 0] + x[:, 1] > 0).long()
    net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = Stochastic(net.parameters(), local_steps=5)

    def minibatch() -> tuple[Callable[[], Tensor], int]:
        index = torch.randint(400, (50,))

        def closure() -> Tensor:
            noise = torch.randn(50, 10, generator=own)
            return cross_entropy(net(x[index] + 0.3 * noise), y[index])

        return closure, 50

    for _ in range(80):
        optimizer.step(minibatch)
    told = [line for line in lines(heard) if "at the same parameters" in line]
    assert len(told) == 1
    assert "generator of its own" in told[0]
    with torch.no_grad():
        assert float((net(x).argmax(1) == y).float().mean()) > 0.9


def test_a_first_radius_that_was_not_found_does_not_bound_the_run(
    heard: pytest.LogCaptureFixture,
) -> None:
    """A kink at the start, so that the loss rises at first; further off there is a long slope."""
    x = nn.Parameter(torch.zeros(4))
    optimizer = Stochastic([x], local_steps=5)
    calls = 0

    def minibatch() -> tuple[Callable[[], Tensor], int]:
        nonlocal calls
        calls += 1
        first = calls == 1  # whose gradient points uphill

        def closure() -> Tensor:
            total = x.double().sum()
            return 10.0 + total - 2.0 * total.detach() if first else 10.0 - total

        return closure, 1

    radii = [optimizer.step(minibatch).radius for _ in range(20)]
    (told,) = lines(heard)
    assert "no first radius was found" in told
    assert radii[0] < 5e-6
    assert radii[-1] > 1e-2


def test_a_constant_loss_is_told(heard: pytest.LogCaptureFixture) -> None:
    net = nn.Linear(3, 2)
    stale = copy.deepcopy(net)
    x, y = torch.randn(8, 3), torch.randint(2, (8,))
    optimizer = Stochastic(net.parameters(), local_steps=3)

    def closure() -> Tensor:  # of a copy; the gradient is as it should be
        moved = cross_entropy(net(x), y)
        return cross_entropy(stale(x), y).detach() + (moved - moved.detach())

    for _ in range(12):
        optimizer.step(lambda: (closure, 8))
    told = lines(heard)
    assert sum("however the parameters move" in line for line in told) == 1
    assert sum("did not change at all in 5 accepted steps" in line for line in told) == 1

"""The search for the first radius: a step is doubled while the loss falls."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.method.first_radius import FirstStep, search

FIRST, LARGEST = 1e-5, 1.0


def searched(loss_at: Callable[[float], float], slope: float) -> FirstStep:
    return search(loss_at, loss=loss_at(0.0), slope=slope, first=FIRST, largest=LARGEST)


@settings(max_examples=200, deadline=None, derandomize=True)
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

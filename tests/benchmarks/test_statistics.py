"""Medians with intervals, and numbers with units."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")

from benchmarks.harness import statistics, units


def test_median_and_interval() -> None:
    values = np.arange(1.0, 102.0)
    found = statistics.median([values])
    assert found.value == 51
    assert found.low is not None
    assert found.high is not None
    # The interval of a median of 101 even numbers: some 10 either side, by order statistics.
    assert 36 <= found.low < 51 < found.high <= 66
    assert statistics.median([values]) == found, "seeded"
    assert statistics.median([np.array([3.0])]) == statistics.Estimate(3.0)


def test_whole_runs_are_drawn() -> None:
    """Two runs that differ: many iterations of each do not make the interval narrow."""
    runs_ = [np.full(1000, 1.0), np.full(1000, 2.0)]
    found = statistics.median(runs_)
    assert (found.value, found.low, found.high) == (1.5, 1.0, 2.0)
    uneven = statistics.median([np.full(3, 1.0), np.full(5, 1.0)])
    assert (uneven.value, uneven.low, uneven.high) == (1.0, 1.0, 1.0)


def test_quotient_is_of_medians() -> None:
    ratio = statistics.quotient([np.array([1.0, 2.0, 9.0])], [np.array([1.0, 4.0, 4.0])])
    assert ratio.value == 0.5, "not the mean of 1, 1/2 and 9/4"


def test_pairs_are_drawn_together() -> None:
    """What disturbs both alike is not in the interval of their difference."""
    noise = np.random.default_rng(1).exponential(1.0, 50)
    found = statistics.paired(lambda a, b: a - b, noise + 0.25, noise)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [(148.93, 1, "148.9"), (0.03414, 1, "0.0341"), (12345.0, 0, "12300"), (0.9999, 0, "1.00")],
)
def test_digits_are_three_or_more(value: float, places: int, text: str) -> None:
    assert units.digits(value, places) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00001, "10.0 µs"), (0.99996, "1.00 s"), (0.0341, "34.1 ms"), (123.4, "123 s"), (0, "0 µs")],
)
def test_seconds_have_units(value: float, text: str) -> None:
    assert units.seconds(value) == text


def test_sizes_and_shares() -> None:
    assert [units.size(b) for b in (4, 999_999, 27_440_000)] == [
        "4 B",
        "1.00 MB",
        "27.4 MB",
    ]
    assert units.percent(0.0337) == "3.4"
    assert units.percent(0.0007) == "0.07"

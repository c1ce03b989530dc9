"""The smoothed ratio, and the radius rule where losses are sampled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.trust_region.radius import NoisyRule, SmoothedRatio

torch.set_num_threads(1)


repeatable = settings(max_examples=80, deadline=None, derandomize=True)


reductions = st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.floats(-1e6, -1e-6))


@repeatable
@given(
    smoothing=st.one_of(st.just(0.0), st.floats(0.01, 0.95)),
    pairs=st.lists(st.tuples(reductions, reductions), min_size=1, max_size=20),
    forgotten=st.integers(0, 19),
)
def test_the_smoothed_ratio_is_that_of_weighted_sums(
    smoothing: float, pairs: list[tuple[float, float]], forgotten: int
) -> None:
    ratio = SmoothedRatio(smoothing)
    begun = 0
    for k, (actual, promised) in enumerate(pairs):
        if k == forgotten:
            ratio.reset()
            begun = k
        rho = ratio.update(actual, promised)
        a, p = np.array(pairs[begun : k + 1]).T
        weights = smoothing ** np.arange(len(a))[::-1]
        below = float(weights @ np.maximum(p, np.abs(a) / 2.0))
        wanted = float(weights @ a) / below if below > 0.0 else 0.0
        assert rho == pytest.approx(wanted, rel=1e-9, abs=1e-9)
        assert -2.0 - 1e-9 <= rho <= 2.0 + 1e-9


rules = st.builds(
    NoisyRule,
    grow_above=st.floats(0.0, 0.9),
    grow=st.floats(1.0, 10.0),
    shrink_below=st.floats(-2.0, -0.01),
    shrink=st.floats(0.1, 0.99),
    minimum=st.floats(1e-8, 1e-3),
)


radii = st.floats(1e-8, 1.0)


@repeatable
@given(rule=rules, radius=radii, rho=st.floats(-2, 2), more=st.floats(0, 4))
def test_the_radius_grows_with_the_ratio_and_stays_in_the_band(
    rule: NoisyRule, radius: float, rho: float, more: float
) -> None:
    radius = max(radius, rule.minimum)
    after = rule.update(radius, rho)
    assert rule.update(radius, rho + more) >= after
    assert after >= rule.minimum
    if rule.shrink_below <= rho <= rule.grow_above:
        assert after == radius
    elif rho < rule.shrink_below:
        assert after == max(radius * rule.shrink, rule.minimum)
    else:
        assert radius <= after <= radius * rule.grow * (1 + 1e-12)
        share = (min(rho, 1.0) - rule.grow_above) / (1.0 - rule.grow_above)
        assert math.log(after / radius) == pytest.approx(share * math.log(rule.grow), abs=1e-9)


@repeatable
@given(rule=rules, radius=radii, finite=st.booleans())
def test_a_rejection_shrinks_the_radius(rule: NoisyRule, radius: float, finite: bool) -> None:
    after, ceiling = rule.after_rejection(radius, finite=finite)
    assert after == max(radius * (0.5 if finite else 0.1), rule.minimum)
    assert ceiling == radius * rule.shrink


@repeatable
@given(radius=radii, rho=st.floats(-0.5, 0.35), times=st.integers(1, 30))
def test_the_radius_grows_back_to_below_that_of_the_rejection(
    radius: float, rho: float, times: int
) -> None:
    rule = NoisyRule()
    after, ceiling = rule.after_rejection(radius, finite=False)
    radii = [after]
    for _ in range(times):
        radii.append(rule.update(radii[-1], rho, ceiling))
    assert radii == sorted(radii)
    assert radii[-1] == pytest.approx(max(min(after * 2 ** (times / 2), ceiling), after))


def test_a_rejection_that_comes_back_lowers_the_ceiling() -> None:
    rule, radius, ceilings = NoisyRule(), 1.0, []
    for _ in range(4):
        radius, ceiling = rule.after_rejection(radius, finite=True)
        ceilings.append(ceiling)
        for _ in range(5):
            radius = rule.update(radius, 0.0, ceiling)
    assert ceilings == pytest.approx([0.8, 0.64, 0.512, 0.4096])


def test_a_ratio_that_shrinks_the_radius_does_so_below_a_ceiling() -> None:
    rule = NoisyRule()
    assert rule.update(0.5, -1.0, 0.8) == 0.5 * rule.shrink


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"smoothing": 1.0}, "smoothing"),
        ({"smoothing": -0.1}, "smoothing"),
        ({"grow_above": 1.0}, "grow_above"),
        ({"shrink_below": 0.5, "grow_above": 0.5}, "shrink_below"),
        ({"shrink": 1.0}, "shrink"),
        ({"shrink": 0.0}, "shrink"),
        ({"grow": 0.9}, "grow"),
        ({"window": 0}, "window"),
        ({"minimum": 0.0}, "minimum"),
        ({"minimum": math.nan}, "minimum"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        NoisyRule(**wrong)

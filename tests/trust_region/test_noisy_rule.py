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


repeatable = settings(max_examples=200, deadline=None, derandomize=True)


anything = st.floats(allow_nan=True, allow_infinity=True)


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
@given(rule=rules, radius=radii, promised=anything, slope=anything)
def test_a_rejection_shrinks_the_radius_from_half_to_a_tenth(
    rule: NoisyRule, radius: float, promised: float, slope: float
) -> None:
    radius = max(radius, rule.minimum)
    after = rule.after_rejection(radius, promised, slope)
    assert max(0.1 * radius, rule.minimum) <= after <= max(0.5 * radius, rule.minimum)


@repeatable
@given(radius=st.floats(1e-3, 1.0), reach=st.floats(0.01, 3.0), curvature=st.floats(1e-3, 1e3))
def test_a_rejection_leads_to_the_parabolas_minimum(
    radius: float, reach: float, curvature: float
) -> None:
    # f(t) = curvature (t^2 / 2 - reach t): at its minimum where t = reach, the trial at 1.
    promised, slope = curvature * reach, curvature * (1.0 - reach)
    after = NoisyRule().after_rejection(radius, promised, slope)
    assert after == pytest.approx(radius * min(max(reach, 0.1), 0.5), rel=1e-6)


@pytest.mark.parametrize(
    ("promised", "slope", "factor"),
    [
        (1.0, -0.5, 0.5),  # still falling at the trial point
        (1.0, -2.0, 0.5),
        (-1.0, 5.0, 0.5),  # nothing was promised
        (0.0, 0.0, 0.5),
        (math.nan, 1.0, 0.1),
        (1.0, math.nan, 0.1),
        (1.0, math.inf, 0.1),
        (-math.inf, 1.0, 0.1),
    ],
)
def test_a_rejection_without_a_parabola_has_a_factor_of_its_own(
    promised: float, slope: float, factor: float
) -> None:
    assert NoisyRule().after_rejection(0.2, promised, slope) == pytest.approx(0.2 * factor)


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

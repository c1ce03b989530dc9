"""The radius rule and the reduction ratio, alone and on the way to a minimiser."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.method.flat import FlatParameters
from apts_mpi.trust_region.radius import RadiusRule, reduction_ratio
from tests.method.driving import Deterministic

torch.set_num_threads(1)
repeatable = settings(max_examples=80, deadline=None, derandomize=True)
reals = st.floats(-1e6, 1e6)
positive = st.floats(1e-6, 1e6)
anything = st.floats(allow_nan=True, allow_infinity=True)


@repeatable
@given(f_old=reals, f_new=reals, predicted=positive)
def test_without_noise_the_ratio_is_actual_over_predicted(
    f_old: float, f_new: float, predicted: float
) -> None:
    assert reduction_ratio(f_old, f_new, predicted) == (f_old - f_new) / predicted


@repeatable
@given(f_old=anything, f_new=anything, predicted=anything, noise=st.sampled_from([0.0, 1e-8]))
def test_a_ratio_is_finite_numbers_only_and_never_an_exception(
    f_old: float, f_new: float, predicted: float, noise: float
) -> None:
    rho = reduction_ratio(f_old, f_new, predicted, noise=noise)
    usable = all(map(math.isfinite, (f_old, f_new, predicted)))
    if not usable or predicted + noise * max(1.0, abs(f_old)) <= 0.0:
        assert math.isnan(rho)
        assert not RadiusRule().accepts(rho)
    else:
        assert not math.isnan(rho)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_loss_or_prediction_that_is_not_finite_is_accepted(bad: float) -> None:
    for arguments in ((bad, 0.0, 1.0), (0.0, bad, 1.0), (1.0, 0.0, bad)):
        assert math.isnan(reduction_ratio(*arguments)), arguments
    for predicted in (0.0, -1.0):
        assert math.isnan(reduction_ratio(1.0, 0.0, predicted)), "nothing was promised"


@repeatable
@given(f_old=reals, low=reals, high=reals, predicted=positive, noise=st.floats(0, 1e-6))
def test_a_lower_trial_loss_never_has_a_lower_ratio(
    f_old: float, low: float, high: float, predicted: float, noise: float
) -> None:
    low, high = min(low, high), max(low, high)
    better = reduction_ratio(f_old, low, predicted, noise=noise)
    assert better >= reduction_ratio(f_old, high, predicted, noise=noise)


@repeatable
@given(f=st.floats(-1e3, 1e3), change=st.floats(-1, 1), predicted=st.floats(0, 1))
def test_reductions_below_the_noise_have_a_ratio_near_one(
    f: float, change: float, predicted: float
) -> None:
    slack = 1e-8 * max(1.0, abs(f))
    change, predicted = 1e-2 * slack * change, 1e-2 * slack * predicted
    assert reduction_ratio(f, f - change, predicted, noise=1e-8) == pytest.approx(1.0, abs=0.03)


@repeatable
@given(radius=st.floats(1e-8, 1e3), rho=anything, hits=st.booleans())
def test_the_radius_stays_in_its_bounds_and_moves_by_its_factors(
    radius: float, rho: float, hits: bool
) -> None:
    rule = RadiusRule(shrink=0.3, grow=3.0)
    after = rule.update(radius, rho, hits_boundary=hits)
    assert rule.minimum <= after <= rule.maximum
    if math.isnan(rho) or rho < rule.shrink_below:
        assert after == max(0.3 * radius, rule.minimum)
    elif rho > rule.grow_above and hits:
        assert after == min(3.0 * radius, rule.maximum)
    else:
        assert after == radius


@repeatable
@given(
    radius=st.floats(1e-8, 1e3),
    wider=st.floats(1, 10),
    rho=st.floats(-10, 10),
    more=st.floats(0, 10),
    hits=st.booleans(),
)
def test_the_radius_grows_with_the_ratio_and_with_itself(
    radius: float, wider: float, rho: float, more: float, hits: bool
) -> None:
    rule = RadiusRule()
    after = rule.update(radius, rho, hits_boundary=hits)
    assert rule.update(radius, rho + more, hits_boundary=hits) >= after
    assert rule.update(radius * wider, rho, hits_boundary=hits) >= after
    assert rule.update(radius, rho, hits_boundary=True) >= after


@repeatable
@given(radius=st.floats(1e-3, 1e3), part=st.floats(0.01, 1.0), rho=st.floats(-1, 2))
def test_a_failed_step_shrinks_the_radius_below_its_own_length(
    radius: float, part: float, rho: float
) -> None:
    rule = RadiusRule()
    after = rule.update(radius, rho, hits_boundary=False, length=part * radius)
    assert after == (0.5 * part * radius if rho < 0.25 else radius)


def test_thresholds_belong_to_the_side_they_name() -> None:
    rule = RadiusRule(accept=0.1, shrink_below=0.25, grow_above=0.75)
    assert rule.accepts(0.1)
    assert not rule.accepts(math.nextafter(0.1, 0.0))
    assert not rule.accepts(math.nan)
    assert rule.update(1.0, 0.25, hits_boundary=True) == 1.0
    assert rule.update(1.0, 0.75, hits_boundary=True) == 1.0
    assert rule.update(1.0, 0.751, hits_boundary=True) == 2.0
    assert rule.at_floor(rule.minimum)
    assert not rule.at_floor(2 * rule.minimum)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"accept": -0.1}, "accept"),
        ({"accept": 0.3}, "accept"),
        ({"shrink_below": 0.75}, "shrink_below"),
        ({"accept": math.nan}, "accept"),
        ({"shrink": 0.0}, "shrink"),
        ({"shrink": 1.0}, "shrink"),
        ({"grow": 1.0}, "grow"),
        ({"minimum": 0.0}, "minimum"),
        ({"minimum": 2.0, "maximum": 1.0}, "maximum"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RadiusRule(**wrong)


# --- on the way to a minimiser: one process, losses in float64 of float32 parameters ---


class Point(nn.Module):
    def __init__(self, x: list[float]) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(x))


def rosenbrock(x: Tensor) -> Tensor:
    return (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum()


@pytest.mark.parametrize("options", [{}, {"global_step": False}, {"join": "sum"}, {"memory": 1}])
@pytest.mark.parametrize("radius", [None, 1e-6, 100.0])
def test_the_lsr1_method_follows_rosenbrocks_valley_to_its_end(
    options: dict[str, Any], radius: float | None
) -> None:
    point = Point([-1.2, 1.0])
    apts = Deterministic(point.parameters(), comm=Comm(), radius=radius, **options)
    for _ in range(120):
        last = apts.step(lambda: rosenbrock(point.x.double()), samples=1, same_batch=True)
        if last.loss < 1e-5 and float((point.x.detach() - 1.0).norm()) < 1e-2:
            return
    raise AssertionError(f"after 120 iterations the loss is {last.loss}")


@pytest.mark.parametrize(
    ("options", "iterations"),
    [
        ({}, 60),
        ({"global_step": False}, 60),
        ({"join": "average"}, 60),
        ({"local_solver": "first-order"}, 200),
        ({"local_solver": "first-order", "join": "sum", "global_step": False}, 200),
        ({"local_solver": "first-order", "norm": "inf"}, 200),
    ],
)
@pytest.mark.parametrize("radius", [None, 1e-4, 50.0])
def test_a_convex_quadratic_falls_to_its_minimum_from_any_first_radius(
    options: dict[str, Any], iterations: int, radius: float | None
) -> None:
    n = 10
    rng = np.random.default_rng(0)
    q = torch.from_numpy(np.linalg.qr(rng.normal(size=(n, n)))[0])
    a = q * torch.linspace(1.0, 10.0, n, dtype=torch.float64) @ q.T
    point = Point(rng.normal(size=n).tolist())

    def loss() -> Tensor:
        x = point.x.double() - 1.0
        return 0.5 * x @ a @ x

    first = float(loss().detach())
    apts = Deterministic(point.parameters(), comm=Comm(), radius=radius, **options)
    for _ in range(iterations):
        last = apts.step(loss, samples=1, same_batch=True)
        if last.loss < 1e-6 * first:
            return
    raise AssertionError(f"after {iterations} iterations the loss is {last.loss}")


@pytest.mark.parametrize("curvature", [1e-3, 1.0, 30.0])
def test_a_parabola_takes_the_lsr1_method_a_few_iterations(curvature: float) -> None:
    point = Point([1.0])
    apts = Deterministic(point.parameters(), comm=Comm(), radius=0.5)
    for _ in range(20):
        last = apts.step(
            lambda: 0.5 * curvature * point.x.double().square().sum(), samples=1, same_batch=True
        )
    assert last.loss < 1e-6 * 0.5 * curvature


# --- scripted losses: the window and the signs of failure ---


class Script:
    """An objective that tells prescribed losses in order; the gradient is one everywhere."""

    def __init__(self, losses: list[float], **options: Any) -> None:
        parameter = nn.Parameter(torch.zeros(4))
        self.flat = FlatParameters([parameter])
        defaults = {"local_solver": "first-order", "local_steps": 1, "global_step": False}
        self.apts = Deterministic(self.flat, comm=Comm(), **{**defaults, "radius": 0.1, **options})
        self.losses = iter(losses)

    repeats = True  # every batch is the same

    def __call__(self, with_gradient: bool) -> float:
        if with_gradient:
            self.flat.gradient.fill_(1.0)
        return next(self.losses)

    def step(self) -> Any:
        return self.apts.iterate(lambda: (self, 1))


def test_a_window_of_five_accepts_a_rise_that_a_monotone_run_rejects() -> None:
    losses = [1.0, 0.5, 0.5, 0.4, 0.6]  # start; local and joined trials of two iterations
    for window, accepted in ((5, True), (1, False)):
        script = Script(losses, window=window)
        assert script.step().accepted
        before = script.flat.vector.clone()
        result = script.step()
        assert result.accepted is accepted
        assert result.loss == pytest.approx(0.6 if accepted else 0.5, abs=1e-15)
        assert torch.equal(script.flat.vector, before) is not accepted


def test_a_window_forgets_the_losses_before_it() -> None:
    falling = [1.0, 0.9, 0.9, 0.5, 0.5, 0.4, 0.4]
    script = Script([*falling, 0.3, 0.8], window=3)
    for _ in range(3):
        assert script.step().accepted
    result = script.step()
    # 0.8 is below the 0.9 of two iterations before; the ratio is told against the last loss, 0.4.
    assert (result.accepted, result.rho) == (True, pytest.approx(-0.4 / result.local_reduction))
    script = Script([*falling, 0.3, 0.91], window=3)
    assert [script.step().accepted for _ in range(4)] == [True, True, True, False]


def messages(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if word in record.getMessage()]


def test_the_signs_of_a_run_that_goes_nowhere_are_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rejected = [0.9, 2.0]  # the local step looks good, the joined trial is worse
    script = Script([1.0, *rejected * 40], rule=RadiusRule(minimum=1e-2), radius=0.1)
    expected = {"at its floor 1.0e-02": 4, "10 iterations in a row": 10, "did not come true": 10}
    with caplog.at_level(logging.WARNING, logger="apts_mpi"):
        for iteration in range(1, 41):
            script.step()
            for sign, due in expected.items():
                assert len(messages(caplog, sign)) == (iteration >= due), (sign, iteration)
    assert script.apts.radius == 1e-2


def test_a_run_that_moves_logs_no_sign_of_failure(caplog: pytest.LogCaptureFixture) -> None:
    with_rests = [*([0.9, 2.0] * 9), 0.8, 0.8]
    script = Script([1.0, *with_rests, *[x - 0.2 for x in with_rests]])
    with caplog.at_level(logging.WARNING, logger="apts_mpi"):
        results = [script.step().accepted for _ in range(20)]
    assert results.count(True) == 2
    assert not caplog.records, "nine rejections are not ten"

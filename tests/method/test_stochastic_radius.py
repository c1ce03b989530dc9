"""The stochastic method's radius: the parabola, the search, growth, cliffs and floors."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi.method.iteration import Iteration
from apts_mpi.trust_region.radius import NoisyRule
from tests.method.driving import Stochastic, driven
from tests.method.sampled import STEPS, Downhill, Run, Scripted

torch.set_num_threads(1)


class Quadratics:
    """Minibatch i has the loss ``x A_i x / 2 - b_i x + 40``, in float64 of float32 parameters."""

    def __init__(self, *, noise: float, **options: Any) -> None:
        n, self.rng = 8, np.random.default_rng(0)
        self.x = nn.Parameter(torch.zeros(n))
        self.hessian = np.diag(np.linspace(0.5, 5.0, n))
        self.noise = noise
        self.optimizer = Stochastic([self.x], **{"local_steps": STEPS, "momentum": 0.5, **options})
        self.seen: list[tuple[NDArray[np.float64], NDArray[np.float64], bool, Tensor]] = []
        self.extra = 0.0  # on the loss at the trial point

    def batches(self) -> tuple[Callable[[], Tensor], int]:
        n = len(self.hessian)
        factor = self.rng.normal(size=(n, n))
        a = self.hessian + self.noise * factor @ factor.T / n
        b = self.hessian @ np.linspace(1.0, 2.0, n) + self.noise * self.rng.normal(size=n)

        def closure() -> Tensor:
            grad = torch.is_grad_enabled()
            trial = grad and bool(self.seen) and self.seen[-1][1] is b
            self.seen.append((a, b, grad, self.x.detach().clone()))
            x = self.x.double()
            loss = 0.5 * x @ torch.as_tensor(a) @ x - torch.as_tensor(b) @ x + 40.0
            return loss + self.extra if trial else loss

        return closure, 4

    def step(self) -> tuple[Iteration, float, float, float, float]:
        """An iteration; and of its control batch, densely: actual and promised reduction.

        Behind them the slope at the trial point and where along the correction the minimum is.
        """
        self.seen.clear()
        result = self.optimizer.step(self.batches)
        (a, b, _, start), (_, b_again, grad, end) = self.seen[-2:]
        assert grad
        assert b_again is b, "the last two evaluations are the control batch's"
        x, y = start.double().cpu().numpy(), end.double().cpu().numpy()
        s = y - x
        actual = (0.5 * x @ a @ x - b @ x) - (0.5 * y @ a @ y - b @ y) - self.extra
        promised, slope = -(a @ x - b) @ s - 2.0 * self.extra, (a @ y - b) @ s
        return result, actual, promised, slope, promised / (s @ a @ s)


@pytest.mark.parametrize("noise", [0.0, 0.3, 2.0])
def test_the_parabola_promises_what_the_slope_does(noise: float) -> None:
    problem = Quadratics(noise=noise, radius=0.05)
    rule = problem.optimizer.rule
    actuals: list[float] = []
    bounded: list[float] = []
    for k in range(30):
        problem.extra = 1e3 * (k % 10 == 5)
        result, actual, promised, _, _ = problem.step()
        assert result.local_reduction == pytest.approx(promised, rel=2e-5, abs=2e-6)
        if result.accepted:
            actuals.append(actual)
            bounded.append(max(promised, abs(actual) / 2.0))
            weights = rule.smoothing ** np.arange(len(actuals))[::-1]
            assert result.rho == pytest.approx(
                float(weights @ actuals) / float(weights @ bounded), rel=1e-3, abs=1e-4
            )
        else:
            actuals, bounded = [], []  # a rejection forgets
            assert result.rho == pytest.approx(actual / max(promised, abs(actual)), rel=1e-3)
    assert problem.optimizer.now.accepted > 10
    assert noise > 0.0 or result.loss < 30.0


def test_a_correction_that_overshoots_far_is_rejected_and_halves_the_radius() -> None:
    accepted = []
    for radius in (0.3, 1.0, 2.0, 3.0, 5.0, 8.0, 20.0, 100.0):
        # One local step, which nothing but the control batch judges.
        problem = Quadratics(noise=0.0, radius=0.01, momentum=0.0, local_steps=1)
        window = problem.optimizer.rule.window
        losses = []
        for _ in range(5):
            result, actual, *_ = problem.step()
            assert result.accepted
            losses.append(result.loss + actual)
        start_loss = result.loss
        problem.optimizer.now.reach = problem.optimizer.now.radius = radius
        before = problem.x.detach().clone()
        result, actual, promised, slope, _ = problem.step()
        known = [*losses, start_loss][-window:]
        limit = max(known) + (max(known) - min(known))
        assert result.accepted == (start_loss - actual <= limit), radius
        accepted.append(result.accepted)
        if not result.accepted:
            assert promised > 0.0
            assert slope > 0.0
            assert torch.equal(problem.x.detach(), before)
            assert result.radius == radius / 2.0
    assert set(accepted) == {True, False}


def test_the_search_doubles_a_step_along_the_gradients_signs_until_the_loss_rises() -> None:
    run = Run(local_solver="scaled")
    theta = run.theta.clone()
    largest = run.optimizer.flat.weight_scale()
    run.step()
    first, *search = [call for call in run.calls if call.draw == 0]
    assert [call.with_gradient for call in (first, *search)] == [True] + [False] * len(search)
    steps = torch.stack([call.theta - theta for call in search]).double()
    lengths = steps.abs().max(dim=1).values
    assert torch.allclose(steps.abs(), lengths[:, None].expand_as(steps), atol=1e-6)
    assert torch.allclose(steps[-1] / lengths[-1], steps[-2] / lengths[-2], atol=1e-2)
    assert torch.allclose(lengths[1:], 2.0 * lengths[:-1], rtol=1e-2)
    reach = run.optimizer.now.reach
    bounded = 2.0 * float(lengths[-1]) >= largest  # as large as the weights: no further
    last = float(lengths[-1 if bounded else -2])
    assert reach == pytest.approx(last, rel=1e-3), "the last that lowered it"
    index = np.random.default_rng(0)
    chosen = index.choice(len(run.x), size=index.integers(10, 21), replace=False)
    losses = []
    with torch.no_grad():
        for t in (0.0, reach / 2.0, reach, 2.0 * reach):
            run.theta.copy_(theta + t * (steps[-1] / lengths[-1]).float())
            losses.append(float(cross_entropy(run.net(run.x[chosen]), run.y[chosen])))
    assert losses[0] > losses[1] > losses[2]
    assert bounded or losses[2] <= losses[3]


@pytest.mark.parametrize(
    ("losses", "limit"),
    [
        ([9.0, 3.0, 0.0, 1.0], 6.0),  # the largest of three, and their spread
        ([9.0, 9.0, 9.0, 9.0], 9.0),  # no noise: monotone
        ([0.0, 0.0, 0.0, 2.0], 4.0),
        ([9.0, -3.0, -4.0, -5.0], -1.0),
        ([2.0], 2.0),
    ],
)
def test_a_rise_by_the_spread_of_the_last_losses_is_taken_and_no_more(
    losses: list[float], limit: float
) -> None:
    for above, accepted in ((-1e-6, True), (1e-6, False)):
        script = Scripted(rule=NoisyRule(window=3))
        for before in losses[:-1]:
            assert script.step(before, before - 1.0).accepted
        theta = script.x.detach().clone()
        assert script.step(losses[-1], limit + above).accepted is accepted
        assert torch.equal(script.x.detach(), theta) is not accepted


def test_promises_that_do_not_come_true_are_nothing_special(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = Scripted()
    with caplog.at_level(logging.WARNING, logger="apts_mpi"):
        for _ in range(15):
            result = script.step(1.0, 1.0 - 2.0**-30, uphill=True)
            assert result.accepted
            assert result.local_reduction > 0.0
            assert 0.0 <= result.rho < 1e-3
    (told,) = caplog.records
    assert "no first radius" in told.getMessage(), "as losses that are given do not move"


def test_the_radius_grows_up_to_twice_the_reach() -> None:
    slope = Downhill()
    radii = [slope.step().radius]
    limit, grow = 2.0 * slope.optimizer.now.reach, slope.optimizer.rule.grow
    assert radii[0] < limit
    while radii[-1] < limit and len(radii) < 100:
        radii.append(slope.step().radius)
        assert radii[-1] == pytest.approx(min(grow * radii[-2], limit)), "what is kept in full"
    assert radii[-1] == limit
    assert slope.step().radius == limit


def test_the_radius_falls_no_lower_than_its_floor() -> None:
    run = Run(rule=NoisyRule(minimum=1e-3)).warm()
    radii = [run.reject().radius for _ in range(12)]
    assert radii[-1] == min(radii) == 1e-3
    assert radii[0] > 1e-3
    # Nor where nothing moves at all.
    control = STEPS
    run.spoil = lambda draw, _grad, loss: loss * math.nan if draw < control else loss
    assert run.step().local_tried == 0
    assert run.optimizer.radius == 1e-3


@pytest.mark.parametrize(("power", "height"), [(2, 3.0), (3, 1000.0), (4, 1000.0), (6, 1000.0)])
def test_a_cliff_is_rejected_however_steep(power: int, height: float) -> None:
    # The steeper it is, the more the slope beyond it makes the parabola promise.
    x = torch.nn.Parameter(torch.zeros(1))
    optimizer = Stochastic([x], local_steps=1, momentum=0.0, radius=1.0)

    def loss() -> torch.Tensor:
        return (2.3 - x + height * x.abs() ** power).sum()

    optimizer.step(lambda: (loss, 1))
    optimizer.now.reach = optimizer.now.radius = 1.0
    before = x.detach().clone()
    result = optimizer.step(lambda: (loss, 1))
    assert not result.accepted
    assert torch.equal(x.detach(), before)
    assert 0.1 <= result.radius <= 0.5


def test_sampling_noise_alone_does_not_freeze_the_radius() -> None:
    # Flat but for noise: an eighth as steep as the control losses scatter.
    rng = np.random.default_rng(0)
    x = torch.nn.Parameter(torch.zeros(4))
    optimizer = Stochastic([x], local_steps=4, radius=1e-3)

    def minibatch() -> tuple[Any, int]:
        tilt = torch.as_tensor(rng.normal(size=4).astype(np.float32))
        level = float(rng.normal())
        return lambda: 10.0 + level + tilt @ x + 0.5 * (x @ x), 1

    radii = [optimizer.step(minibatch).radius for _ in range(100)]
    assert min(radii) > 1e-3 * radii[0]


def test_local_steps_taken_back_leave_the_radius_to_the_joined_step() -> None:
    slope = Downhill(local_steps=6, rule=NoisyRule(grow=1.0))
    slope.step()
    for spoilt in (None, 0, 1, 2, 3):
        slope.spoilt = spoilt
        before = slope.optimizer.radius
        result = slope.step()
        if spoilt is not None:  # one step is rejected, and those before it are lost
            assert (result.local_accepted, result.local_tried) == (4 - spoilt, 5)
        assert result.radius == before, spoilt


def test_the_first_loss_is_no_blow_up_later() -> None:
    # Losses of a network that has learned: mostly tiny, now and then one as at the start.
    losses = iter([2.0, *[0.01] * 30, 1.9, *[0.01] * 30])
    x = torch.nn.Parameter(torch.zeros(1))
    optimizer = Stochastic([x], local_steps=60, radius=1e-3)
    solver = optimizer._subdomains[0].solver

    def draw() -> tuple[Any, int]:
        loss = next(losses)

        def objective(with_gradient: bool) -> float:
            if with_gradient:
                optimizer.flat.gradient.fill_(1.0)
            return loss

        return objective, 1

    first, _ = draw()
    start = optimizer.flat.vector.clone()
    done = driven(solver.run(start=start, loss=first(True), samples=1, radius=1e-3), draw)
    assert done.accepted == done.tried == 60


def test_a_radius_far_too_large_is_cut() -> None:
    run, larger = Run(radius=1.0), Run(radius=100.0)
    first = run.loss()
    run.step()
    larger.step()
    assert run.optimizer.radius == larger.optimizer.radius <= run.optimizer.now.reach
    assert torch.equal(run.theta, larger.theta)
    for _ in range(25):
        run.step()
    assert run.loss() < 0.5 * first


def test_a_radius_far_too_small_grows() -> None:
    run = Run(radius=1e-6)
    assert run.optimizer.radius == 1e-6
    first = run.loss()
    radii = [run.step().radius for _ in range(60)]
    assert max(radii) > 100 * 1e-6
    assert run.loss() < 0.8 * first

"""The stochastic family on one process: its mathematics, what it keeps, and bad luck."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import gammaln
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi.comm.communicator import Comm
from apts_mpi.method import stochastic
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.stochastic import StochasticAPTS
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import FEWEST, MINIBATCHES, OUTER_SAMPLES, SHORT, completed, plan
from apts_mpi.trust_region import scaled
from apts_mpi.trust_region.objective import Pending
from apts_mpi.trust_region.radius import NoisyRule, SmoothedRatio
from apts_mpi.trust_region.scaled import ScaledSolver
from tests.devices import DEVICE
from tests.method.driving import driven

torch.set_num_threads(1)
repeatable = settings(max_examples=200, deadline=None, derandomize=True)
anything = st.floats(allow_nan=True, allow_infinity=True)
STEPS = 4  # local ones, where a test does not say
bad_numbers = pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])


@dataclass(frozen=True)
class Call:
    """An evaluation: of which minibatch of the iteration, how, and where."""

    draw: int
    with_gradient: bool
    theta: Tensor
    samples: int


def no_spoiling(_draw: int, _with_gradient: bool, loss: Tensor) -> Tensor:
    return loss


class Run:
    """A small classifier, its optimizer, minibatches of 10 to 20 samples; records every call."""

    def __init__(self, seed: int = 0, **options: Any) -> None:
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        self.x = torch.randn(60, 5)
        self.y = (self.x[:, 0] > 0).long() + (self.x[:, 1] > 0.5)
        options = {"local_steps": STEPS, "ahead": False, **options}
        self.optimizer = StochasticAPTS(
            self.net.parameters(), comm=Comm(), **{"momentum": 0.5, **options}
        )
        self.rng = np.random.default_rng(seed)
        self.calls: list[Call] = []
        self.draws = 0  # of the iteration
        self.fresh = True  # whether the iteration begins with a minibatch of its own
        self.spoil: Callable[[int, bool, Tensor], Tensor] = no_spoiling

    @property
    def theta(self) -> Tensor:
        return self.optimizer.flat.vector

    @property
    def control(self) -> int:
        """Which minibatch of the coming iteration is its control batch."""
        return self.optimizer._subdomains[0].local.steps - 1 + self.fresh

    def minibatch(self) -> NDArray[np.int64]:
        return self.rng.choice(len(self.x), size=self.rng.integers(10, 21), replace=False)

    def batches(self) -> tuple[Callable[[], Tensor], int]:
        draw, index = self.draws, self.minibatch()
        self.draws += 1

        def closure() -> Tensor:
            grad = torch.is_grad_enabled()
            self.calls.append(Call(draw, grad, self.theta.clone(), len(index)))
            return self.spoil(draw, grad, cross_entropy(self.net(self.x[index]), self.y[index]))

        return closure, len(index)

    def step(self) -> Iteration:
        self.calls, self.draws = [], 0
        result = self.optimizer.step(self.batches)
        self.fresh = not result.accepted
        return result

    def warm(self, count: int = 3) -> Run:
        """So many iterations of which the last is accepted."""
        while count > 0 or self.fresh:
            self.step()
            count -= 1
        return self

    def loss(self) -> float:
        """Over all samples."""
        with torch.no_grad():
            return float(cross_entropy(self.net(self.x), self.y))

    def reject(self) -> Iteration:
        """An iteration whose trial point fails."""
        control, before = self.control, self.spoil
        self.spoil = lambda draw, grad, loss: loss + 50.0 * (draw == control and grad)
        result = self.step()
        self.spoil = before
        return result


@pytest.mark.parametrize("spoiled", [False, True])
def test_steps_taken_ahead_train_bit_for_bit_alike(spoiled: bool) -> None:
    runs = [Run(3, ahead=ahead, local_steps=6) for ahead in (True, False)]
    for run in runs:
        run.warm()
        if spoiled:  # a loss of a local step, judged too late by the run that goes ahead
            run.spoil = lambda draw, _grad, loss: loss + 100.0 * (draw == 3)
    taken = [[vars(run.step()) for _ in range(5)] for run in runs]
    work = [[row.pop("gradient_evaluations") for row in rows] for rows in taken]
    assert repr(taken[0]) == repr(taken[1])
    assert (work[0] > work[1]) == spoiled, "what is undone has been work too"
    assert torch.equal(runs[0].theta, runs[1].theta)
    states = [run.optimizer.state_dict()["subdomains"]["0"]["local"] for run in runs]
    for name in ("m", "v"):
        assert torch.equal(states[0].pop(name), states[1].pop(name))
    assert states[0] == states[1]


# --- a local step ---


class Given:
    """A solver over n parameters, zero at first, whose minibatches have given gradients."""

    def __init__(self, n: int, *, steps: int, ahead: bool = False) -> None:
        self.flat = FlatParameters([nn.Parameter(torch.zeros(n))])
        self.start = torch.zeros(n)
        kept = [torch.zeros(n) for _ in range(3 if ahead else 0)]
        self.solver = ScaledSolver(self.flat.vector, self.flat.gradient, steps=steps, kept=kept)
        self.seen: list[Tensor] = []

    def run(
        self, gradients: Tensor, *, radius: float, losses: list[float] | None = None
    ) -> scaled.ScaledResult:
        """``steps`` gradients and losses; the parameters at every draw are put into ``seen``."""
        losses = [1.0] * len(gradients) if losses is None else losses
        rest = iter(zip(gradients[1:], losses[1:], strict=True))
        self.seen = []

        def draw() -> tuple[Callable[[bool], float], int]:
            gradient, loss = next(rest)

            def objective(with_gradient: bool) -> float:
                assert with_gradient, "a loss without its gradient is of no use here"
                self.seen.append(self.flat.vector.clone())
                self.flat.gradient.copy_(gradient)
                return loss

            return objective, 2

        self.flat.gradient.copy_(gradients[0])
        result = driven(
            self.solver.run(start=self.start, loss=losses[0], samples=2, radius=radius), draw
        )
        self.seen.append(self.flat.vector.clone())
        assert next(rest, None) is None
        return result


class Adam:
    """Kingma and Ba, Algorithm 1, in float64 of NumPy."""

    def __init__(self, n: int) -> None:
        self.theta, self.m, self.v = (np.zeros(n) for _ in range(3))
        self.t = 0

    def step(self, g: NDArray[np.float64], rate: float) -> None:
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        m, v = self.m / (1.0 - 0.9**self.t), self.v / (1.0 - 0.999**self.t)
        self.theta = self.theta - rate * m / (np.sqrt(v) + 1e-8)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e6])
@pytest.mark.parametrize("radius", [1e-5, 1e-3, 0.3])
def test_local_steps_are_those_of_adam_with_the_radius_as_rate(
    radius: float, scale: float, fused: bool
) -> None:
    n, steps = 50, 7
    torch.manual_seed(0)
    sizes = torch.logspace(-3, 3, n) * scale
    sizes[::10] = 0.0
    problem = Given(n, steps=steps)
    problem.solver._fused = problem.solver._fused and fused  # both of torch's ways
    ours, theirs = Adam(n), nn.Parameter(torch.zeros(n, dtype=torch.float64))
    optimizer = torch.optim.Adam([theirs], lr=radius, foreach=False, fused=False)
    for rate in (radius, radius / 3.0, radius):  # the averages go on from run to run
        optimizer.param_groups[0]["lr"] = rate
        gradients = sizes * torch.randn(steps, n)
        result = problem.run(gradients, radius=rate)
        assert (result.samples, result.evaluations) == (2 * steps, 2 * (steps - 1))
        assert (result.accepted, result.tried) == (steps, steps)
        for gradient, seen in zip(gradients, problem.seen, strict=True):
            theirs.grad = gradient.double()
            optimizer.step()
            ours.step(gradient.double().cpu().numpy(), rate)
            assert float(np.abs(ours.theta).max()) > 0.9 * rate
            for reference in (ours.theta, theirs.detach().cpu().numpy()):
                # Rounding of float32: of each step, and of where it leads from.
                assert np.allclose(seen.cpu().numpy(), reference, rtol=2e-5, atol=2e-5 * rate)
    assert problem.solver.learned == ours.t == 3 * steps
    assert bool((problem.flat.vector[::10] == 0.0).all()), "no gradient, no step"


@pytest.mark.parametrize("seed", range(5))
def test_a_local_step_is_the_minimiser_of_the_linear_model_in_the_scaled_ball(seed: int) -> None:
    n, steps, radius = 6, 5, 0.02
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(steps, n)) * 10.0 ** rng.uniform(-2, 2, n)
    problem = Given(n, steps=steps)
    problem.run(torch.as_tensor(gradients).float(), radius=radius)
    p = (problem.seen[-1] - problem.seen[-2]).double().cpu().numpy()

    ages = np.arange(steps)[::-1, None]
    first, second = scaled.FIRST_DECAY**ages, scaled.SECOND_DECAY**ages
    m = (first * gradients).sum(0) / first.sum()
    d = np.diag(np.sqrt((second * gradients**2).sum(0) / second.sum()) + scaled.EPSILON)
    inverse = np.linalg.inv(d)
    size = radius * math.sqrt(m @ inverse @ m)  # r |m|_{1/D}
    assert math.sqrt(p @ d @ p) == pytest.approx(size, rel=1e-4), "on the boundary"
    steepest = -np.linalg.solve(d, m)
    assert np.allclose(p, p @ d @ steepest / (steepest @ d @ steepest) * steepest, rtol=1e-3)

    # And a solver that knows nothing of it, in variables of length one.
    root = np.linalg.inv(np.sqrt(d))
    unit = root @ m / np.linalg.norm(root @ m)
    found = minimize(
        lambda z: z @ unit,
        rng.normal(size=n) * 0.1,
        jac=lambda _z: unit,
        constraints={"type": "ineq", "fun": lambda z: 1.0 - z @ z, "jac": lambda z: -2.0 * z},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert m @ p == pytest.approx(size * (found.fun * np.linalg.norm(root @ m)), rel=1e-4)
    assert np.allclose(p, size * root @ found.x, atol=1e-3 * float(np.abs(p).max()))


@bad_numbers
def test_a_gradient_that_is_not_finite_teaches_nothing_and_moves_nothing(bad: float) -> None:
    gradients = torch.randn(4, 10)
    spoiled = gradients.clone()
    spoiled[2, 3] = bad
    problem, without = Given(10, steps=4), Given(10, steps=3)
    result = problem.run(spoiled, radius=0.01)
    without.run(gradients[[0, 1, 3]], radius=0.01)
    assert (result.accepted, result.tried) == (3, 3)
    assert torch.equal(problem.seen[2], problem.seen[1]), "it did not move"
    for name in ("m", "v"):
        assert torch.equal(getattr(problem.solver, name), getattr(without.solver, name))
    assert torch.equal(problem.flat.vector, without.flat.vector)


def blown_up(losses: list[float], sign: float = 1.0) -> float:
    """A loss that no sampling noise explains."""
    return max(losses) + sign * 1.01 * (scaled.BLOW_UP - 1.0) * abs(max(losses))


@pytest.mark.parametrize(
    "loss", [math.nan, math.inf, blown_up([1.0, 0.5]), blown_up([1.0, 0.5]) * 1e6]
)
def test_a_step_that_blew_up_is_taken_back_with_the_next_ones_a_quarter(loss: float) -> None:
    gradient = torch.full((5, 3), 0.1)  # equal ones: every step is as long as the radius
    problem = Given(3, steps=5)
    problem.start.fill_(1.0)
    problem.flat.vector.copy_(problem.start)
    losses = [1.0, 0.5, loss, 0.5, 0.5]
    result = problem.run(gradient, radius=0.2, losses=losses)
    one, two, back, third, fourth = ((1.0 - seen) / 0.2 for seen in problem.seen)
    assert torch.allclose(one, torch.ones(3), rtol=1e-5)
    assert torch.allclose(two, torch.full((3,), 2.0), rtol=1e-5)
    assert torch.equal(problem.seen[2], problem.start)
    assert torch.equal(back, torch.zeros(3))
    assert torch.allclose(third, torch.full((3,), 0.25), rtol=1e-5)
    assert torch.allclose(fourth, torch.full((3,), 0.5), rtol=1e-5)
    assert (result.accepted, result.tried) == (2, 4)
    assert (result.samples, result.evaluations) == (10, 8)


def test_noise_of_the_loss_is_no_blow_up() -> None:
    for losses in ([1.0, 1.9, 0.1, 1.9], [1e-9, 0.0, 1.9e-9, 1e-9]):
        problem = Given(3, steps=4)
        assert problem.run(torch.ones(4, 3), radius=0.1, losses=losses).accepted == 4


def test_losses_below_zero_are_judged_as_those_above() -> None:
    problem = Given(3, steps=4)
    losses = [-10.0, -9.0, -11.0, -10.0]
    assert problem.run(torch.ones(4, 3), radius=0.1, losses=losses).accepted == 4
    problem = Given(3, steps=3)
    losses = [-10.0, -9.0, blown_up([-10.0, -9.0])]
    assert problem.run(torch.ones(3, 3), radius=0.1, losses=losses).accepted == 0


class Script:
    """What every drawing of a rank's local steps gives: samples, a loss, a gradient."""

    def __init__(self, losses: list[float], bad: set[int], empty: set[int]) -> None:
        generator = torch.Generator(DEVICE).manual_seed(0)
        self.losses, self.bad, self.empty = losses, bad, empty
        self.gradients = torch.randn(len(losses), 5, generator=generator)
        for i in bad:
            self.gradients[i, 0] = math.nan
        self.looked = 0

    def play(self, problem: Given, length: int) -> list[scaled.ScaledResult]:
        """Runs of so many minibatches, until all are drawn."""
        return [
            self._run(problem, first, length) for first in range(0, len(self.losses) - 1, length)
        ]

    def _run(self, problem: Given, first: int, length: int) -> scaled.ScaledResult:
        rest = iter(range(first + 1, len(self.losses)))

        def heard(value: Tensor) -> float:
            self.looked += 1
            return float(value)

        def draw() -> tuple[Callable[[bool], Pending], int]:
            i = next(rest)

            def objective(_with_gradient: bool) -> Pending:
                problem.flat.gradient.copy_(self.gradients[i])
                return Pending(torch.tensor(self.losses[i], dtype=torch.float64), heard)

            return objective, 0 if i in self.empty else 2

        problem.solver.steps = min(length, len(self.losses) - first)
        problem.flat.gradient.copy_(self.gradients[first])
        course = problem.solver.run(
            start=problem.start, loss=self.losses[first], samples=2, radius=0.01
        )
        return driven(course, draw)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_steps_taken_ahead_are_those_that_are_judged_one_by_one(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 30))
    usual = st.one_of(st.floats(0.5, 1.5), st.floats(0.5, 1.5), st.sampled_from([9.0, math.nan]))
    losses = data.draw(st.lists(usual, min_size=count, max_size=count))
    bad, empty = (data.draw(st.sets(st.integers(0, count - 1), max_size=3)) for _ in range(2))
    length = data.draw(st.integers(2, count))
    both = [Given(5, steps=length, ahead=ahead) for ahead in (True, False)]
    before, scaled.BLOCK = scaled.BLOCK, data.draw(st.integers(1, 7))
    try:
        ahead, by_turns = (Script(losses, bad, empty).play(each, length) for each in both)
    finally:
        scaled.BLOCK = before
    for one, other in zip(ahead, by_turns, strict=True):
        assert replace(one, evaluations=0) == replace(other, evaluations=0)
        assert one.evaluations >= other.evaluations
    assert torch.equal(both[0].flat.vector, both[1].flat.vector)
    states = [each.solver.state_dict() for each in both]
    for name in ("m", "v"):
        assert torch.equal(states[0].pop(name), states[1].pop(name))
    assert repr(states[0]) == repr(states[1])


def test_steps_taken_ahead_wait_for_no_loss_of_their_own() -> None:
    script, problem = Script([1.0] * 40, set(), set()), Given(5, steps=40, ahead=True)
    (result,) = script.play(problem, 40)
    assert (result.accepted, result.evaluations, script.looked) == (40, 78, 0)


def test_minibatches_that_are_empty_are_passed_over() -> None:
    problem = Given(3, steps=3)
    draws = iter([0, 0])
    course = problem.solver.run(start=problem.start, loss=0.0, samples=0, radius=0.1)
    result = driven(course, lambda: (lambda _with_gradient: math.nan, next(draws)))
    assert (result.samples, result.accepted, result.tried, result.evaluations) == (0, 0, 0, 0)
    assert problem.solver.learned == 0
    assert torch.equal(problem.flat.vector, problem.start)


# --- the ratio and the rule ---

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


# --- the parabola: minibatches are quadratics of their own ---


class Quadratics:
    """Minibatch i has the loss ``x A_i x / 2 - b_i x + 40``, in float64 of float32 parameters."""

    def __init__(self, *, noise: float, **options: Any) -> None:
        n, self.rng = 8, np.random.default_rng(0)
        self.x = nn.Parameter(torch.zeros(n))
        self.hessian = np.diag(np.linspace(0.5, 5.0, n))
        self.noise = noise
        self.optimizer = StochasticAPTS(
            [self.x], **{"local_steps": STEPS, "momentum": 0.5, **options}
        )
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


def test_a_correction_that_overshoots_shrinks_the_radius_to_the_minimum_along_it() -> None:
    factors, accepted = [], []
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
        result, actual, promised, slope, minimum = problem.step()
        known = [*losses, start_loss][-window:]
        limit = max(known) + (max(known) - min(known))
        assert result.accepted == (start_loss - actual <= limit), radius
        accepted.append(result.accepted)
        if not result.accepted:
            assert promised > 0.0
            assert slope > 0.0
            assert torch.equal(problem.x.detach(), before)
            factors.append(min(max(minimum, 0.1), 0.5))
            assert result.radius == pytest.approx(radius * factors[-1], rel=1e-3)
    assert True in accepted
    assert any(0.1 < factor < 0.5 for factor in factors), factors


# --- what an iteration evaluates, sends, and keeps ---


def test_an_iteration_evaluates_its_minibatches_once_and_an_unseen_one_twice() -> None:
    run = Run().warm(1)
    for k in range(12):
        fresh, control, theta = run.fresh, run.control, run.theta.clone()
        result = run.reject() if k % 4 == 3 else run.step()
        assert run.draws == control + 1 == STEPS + fresh
        before, trial = run.calls[-2:]
        # Until the correction stands, the control batch has not been evaluated at all.
        assert [call.draw for call in run.calls[:-2]] == list(range(control))
        assert all(call.with_gradient for call in run.calls[:-2])
        assert (before.draw, before.with_gradient) == (control, False)
        assert torch.equal(before.theta, theta)
        assert (trial.draw, trial.with_gradient) == (control, True)
        assert torch.equal(run.theta, trial.theta if result.accepted else theta)
        assert fresh == torch.equal(run.calls[0].theta, theta), "the control gradient is used again"
        work = sum(call.samples * (1 if call.with_gradient else 1 / 3) for call in run.calls)
        assert result.gradient_evaluations == pytest.approx(work, rel=1e-12)
        assert result.local_tried == STEPS


def test_what_the_control_batch_says_does_not_change_what_it_judges() -> None:
    one, other = Run().warm(), Run().warm()
    control = other.control
    other.spoil = lambda draw, grad, loss: loss * 1.5 + 0.2 if draw == control else loss
    told, heard = one.step(), other.step()
    assert torch.equal(one.calls[-1].theta, other.calls[-1].theta)
    assert told.loss != heard.loss
    assert told.local_reduction != heard.local_reduction


def test_an_iteration_sends_a_vector_and_a_scalar_message_whatever_happens() -> None:
    run = Run()
    traffic = run.optimizer.comm.traffic
    assert traffic.vector_allreduces == 0
    assert traffic.bytes_broadcast >= 4 * run.optimizer.flat.n
    run.step()
    assert traffic.vector_allreduces == 2, "the first radius is searched along a joined gradient"
    accepted = []
    for k in range(12):
        before = copy.copy(traffic)
        accepted.append((run.reject() if k % 3 == 2 else run.step()).accepted)
        assert traffic.vector_allreduces - before.vector_allreduces == 1
        assert traffic.scalar_allreduces - before.scalar_allreduces == 1
        assert (traffic.broadcasts, traffic.agreements) == (before.broadcasts, before.agreements)
    assert True in accepted
    assert False in accepted


def test_the_search_doubles_a_step_along_the_gradients_signs_until_the_loss_rises() -> None:
    run = Run()
    theta = run.theta.clone()
    largest = run.optimizer.flat.weight_scale()
    run.step()
    first, *search = [call for call in run.calls if call.draw == 0]
    assert first.with_gradient
    assert not any(call.with_gradient for call in search)
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


@pytest.mark.parametrize("how", ["higher", "inf", "-inf", "nan", "gradient"])
def test_a_rejected_correction_leaves_everything_as_it_was(how: str) -> None:
    run = Run(averaging=1.0).warm()
    control = run.control

    def spoil(draw: int, grad: bool, loss: Tensor) -> Tensor:
        if draw != control or not grad:
            return loss
        if how == "gradient":  # of infinite slope, the loss itself as it was
            return loss + torch.sqrt(loss - loss.detach())
        return loss + (50.0 if how == "higher" else float(how))  # the gradient as it was

    theta, average, radius = run.theta.clone(), run.optimizer.average.clone(), run.optimizer.radius
    accepted = run.optimizer.now.accepted
    assert float(run.optimizer.state_dict()["moved"].abs().max()) > 0
    assert not torch.equal(theta, average)
    run.spoil = spoil
    result = run.step()
    assert not result.accepted
    assert not torch.equal(run.calls[-1].theta, theta), "something was tried"
    assert torch.equal(run.theta, theta)
    assert torch.equal(run.optimizer.average, average)
    assert not run.optimizer.state_dict()["moved"].any()
    assert run.optimizer.state_dict()["ratio"] == [0.0, 0.0]
    assert run.optimizer.now.accepted == accepted
    assert 0.1 * radius <= run.optimizer.radius == result.radius <= 0.5 * radius
    assert math.isfinite(result.loss)
    assert math.isnan(result.rho) if how != "higher" else result.rho < 0.0
    run.spoil = no_spoiling
    run.warm()
    assert bool(run.theta.isfinite().all())
    assert not torch.equal(run.theta, theta), "it goes on"


def test_a_gradient_that_was_changed_between_steps_is_not_used() -> None:
    """By a backward of somebody else's, for example, or by clipping."""
    kept, changed, read = Run(), Run(), Run()
    for run in (kept, changed, read):
        run.warm()
    torch.nn.utils.clip_grad_norm_(changed.net.parameters(), 1e-3)
    changed.fresh = True  # the iteration begins with a minibatch of its own again
    float(read.net[0].weight.grad.norm())  # type: ignore[union-attr,operator]
    results = [run.step() for run in (kept, changed, read)]
    assert torch.equal(kept.theta, read.theta)
    assert not torch.equal(kept.theta, changed.theta)
    more = results[1].gradient_evaluations - results[0].gradient_evaluations
    assert more >= 5, "one more minibatch"


class Downhill:
    """A slope without an end: every correction is taken and keeps what it promised."""

    def __init__(self, **options: Any) -> None:
        self.x = nn.Parameter(torch.zeros(4))
        self.optimizer = StochasticAPTS(
            [self.x], **{"local_steps": STEPS, "momentum": 0.5, **options}
        )
        self.draws = 0
        self.spoilt: int | None = None  # the minibatch whose loss is far too high

    def batches(self) -> tuple[Callable[[], Tensor], int]:
        extra = 1e9 * (self.draws == self.spoilt)
        self.draws += 1
        return lambda: extra - self.x.double().sum(), 1

    def step(self) -> Iteration:
        self.draws = 0
        result = self.optimizer.step(self.batches)
        assert result.accepted
        return result


class Scripted:
    """Minibatches of given losses: local ones of 1, the control batch's before and at the trial."""

    def __init__(self, **options: Any) -> None:
        self.x = nn.Parameter(torch.zeros(4))
        self.optimizer = StochasticAPTS(
            [self.x], **{"local_steps": STEPS, "momentum": 0.5, **options}
        )
        self.fresh = True

    def step(self, before: float, trial: float, *, uphill: bool = False) -> Iteration:
        """An iteration; all gradients are -1, but where it is to go uphill at the trial point."""
        draws, control = iter(range(STEPS + 1)), STEPS - 1 + self.fresh

        def batches() -> tuple[Callable[[], Tensor], int]:
            draw = next(draws)

            def closure() -> Tensor:
                at_trial = draw == control and torch.is_grad_enabled()
                loss = 1.0 if draw < control else trial if at_trial else before
                total = self.x.double().sum()
                return loss - (total - total.detach()) * (-1.0 if at_trial and uphill else 1.0)

            return closure, 1

        result = self.optimizer.step(batches)
        self.fresh = not result.accepted
        assert result.loss == (trial if result.accepted else before)
        return result


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
    optimizer = StochasticAPTS([x], local_steps=1, momentum=0.0, radius=1.0)

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
    optimizer = StochasticAPTS([x], local_steps=4, radius=1e-3)

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
        if spoilt is not None:  # one step is not taken, and those before it are lost
            assert (result.local_accepted, result.local_tried) == (4 - spoilt, 5)
        assert result.radius == before, spoilt


def test_the_first_loss_is_no_blow_up_later() -> None:
    # Losses of a network that has learned: mostly tiny, now and then one as at the start.
    losses = iter([2.0, *[0.01] * 30, 1.9, *[0.01] * 30])
    x = torch.nn.Parameter(torch.zeros(1))
    optimizer = StochasticAPTS([x], local_steps=60, radius=1e-3)
    solver = optimizer._subdomains[0].local

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


@pytest.mark.parametrize("radius", [1.0, 100.0])
def test_a_radius_far_too_large_is_cut(radius: float) -> None:
    run, searched = Run(radius=radius), Run()
    first = run.loss()
    run.step()
    searched.step()
    assert run.optimizer.radius == searched.optimizer.radius <= run.optimizer.now.reach
    assert torch.equal(run.theta, searched.theta)
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


def coefficients(count: int, averaging: float) -> NDArray[np.float64]:
    """Of the iterates in their average, in closed form: Gamma(i + a) / Gamma(i)."""
    if math.isinf(averaging):
        return np.array([0.0] * (count - 1) + [1.0])
    i = np.arange(1, count + 1, dtype=float)
    logs = gammaln(i + averaging) - gammaln(i)
    return np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()


@pytest.mark.parametrize("averaging", [0.0, 0.7, 4.0, math.inf])
def test_the_average_is_the_weighted_mean_of_accepted_iterates(averaging: float) -> None:
    run = Run(averaging=averaging)
    assert torch.equal(run.optimizer.average, run.theta), "before anything was accepted"
    iterates: list[Tensor] = []
    for k in range(15):
        result = run.reject() if k in (4, 9) else run.step()
        if result.accepted:
            iterates.append(run.theta.double().clone())
        if not iterates:
            continue
        weights = torch.as_tensor(coefficients(len(iterates), averaging))
        mean = (weights[:, None] * torch.stack(iterates)).sum(0)
        assert torch.allclose(run.optimizer.average.double(), mean, atol=1e-6)
        if averaging == 0.0:
            assert torch.allclose(mean, torch.stack(iterates).mean(0), atol=1e-12)
        if math.isinf(averaging):
            assert torch.equal(run.optimizer.average, run.theta)
    assert len(iterates) > 8


def test_the_average_is_lent_to_the_network_and_taken_back() -> None:
    run = Run().warm()
    theta, average = run.theta.clone(), run.optimizer.average.clone()
    assert not torch.equal(theta, average)
    with run.optimizer.averaged():
        assert torch.equal(nn.utils.parameters_to_vector(run.net.parameters()), average)
    assert torch.equal(run.theta, theta)

    def evaluate() -> None:
        with run.optimizer.averaged():
            assert torch.equal(run.theta, average)
            raise ZeroDivisionError("planted")

    with pytest.raises(ZeroDivisionError):
        evaluate()
    assert torch.equal(run.theta, theta)
    assert torch.equal(run.optimizer.average, average)
    twin = Run().warm()
    run.step()
    twin.step()
    assert torch.equal(run.theta, twin.theta), "evaluating changes nothing"


@pytest.mark.parametrize("cosine", [1.0, 0.9, 0.4, 0.2, 0.05, 0.0, -0.3, -1.0])
def test_momentum_is_nesterovs_as_far_as_the_corrections_agree(cosine: float) -> None:
    run, plain = Run(momentum=0.6).warm(), Run(momentum=0.6).warm()
    theta = run.theta.double().clone()
    plain.optimizer.options = replace(plain.optimizer.options, momentum=0.0)
    plain.step()
    d = plain.calls[-1].theta.double() - theta
    # What was taken before, half as long as d, at a given angle to it.
    aside = torch.randn(
        len(d), dtype=torch.float64, generator=torch.Generator(DEVICE).manual_seed(0)
    )
    aside -= aside @ d / (d @ d) * d
    u = 0.5 * (cosine * d + math.sqrt(1.0 - cosine**2) * d.norm() / aside.norm() * aside)
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "moved": u.float()})
    result = run.step()
    s = run.calls[-1].theta.double() - theta
    mu = 0.6 * min(max(stochastic._AGREEMENT * cosine, 0.0), 1.0)
    assert torch.allclose(s, d + mu * (mu * u + d), atol=1e-3 * float(d.abs().max()))
    if result.accepted:
        moved = run.optimizer.state_dict()["moved"].double()
        assert torch.allclose(moved, mu * u + d, atol=1e-3 * float(d.abs().max()))


def test_without_momentum_a_correction_is_what_joined() -> None:
    run = Run(momentum=0.0)
    for _ in range(5):
        theta = run.theta.clone()
        if run.step().accepted:
            s = run.theta - theta
            assert torch.allclose(run.optimizer.state_dict()["moved"], s, atol=1e-6)


def test_the_loss_falls() -> None:
    run = Run()
    first = run.loss()
    for _ in range(40):
        run.step()
    with run.optimizer.averaged():
        assert run.loss() < 0.3 * first


# --- bad luck ---


@bad_numbers
def test_a_local_loss_that_is_not_finite_takes_the_rank_back(bad: float) -> None:
    run = Run().warm()
    theta = run.theta.clone()
    run.spoil = lambda draw, _grad, loss: loss + bad if draw == 1 else loss
    result = run.step()
    assert not torch.equal(run.calls[1].theta, theta)
    assert torch.equal(run.calls[2].theta, theta), "the next minibatch is evaluated at the start"
    assert result.local_accepted < result.local_tried
    assert math.isfinite(result.loss)
    for name in ("m", "v"):
        assert bool(run.optimizer.state_dict()["subdomains"]["0"]["local"][name].isfinite().all())
    run.spoil = no_spoiling
    run.warm()
    assert not torch.equal(run.theta, theta)


@bad_numbers
def test_an_iteration_in_which_nothing_moved_is_not_accepted(bad: float) -> None:
    run = Run().warm()
    theta, average, radius = run.theta.clone(), run.optimizer.average.clone(), run.optimizer.radius
    control, traffic = run.control, run.optimizer.comm.traffic
    run.spoil = lambda draw, _grad, loss: loss + bad if draw < control else loss
    sent = traffic.vector_allreduces
    result = run.step()
    assert traffic.vector_allreduces == sent + 1
    assert (result.accepted, result.local_accepted, result.local_tried) == (False, 0, 1)
    assert torch.equal(run.theta, theta)
    assert torch.equal(run.optimizer.average, average)
    assert run.optimizer.rule.minimum <= result.radius < radius
    assert math.isnan(result.rho)
    assert math.isfinite(result.loss)
    state = run.optimizer.state_dict()
    assert not state["moved"].any()
    assert state["ratio"] == [0.0, 0.0]
    run.spoil = no_spoiling
    run.warm()
    assert not torch.equal(run.theta, theta)


@bad_numbers
def test_a_loss_at_the_iterate_that_is_not_finite_is_an_error(bad: float) -> None:
    run = Run()
    run.spoil = lambda _draw, _grad, loss: loss + bad
    with pytest.raises(FloatingPointError, match="loss at the start of iteration 1 is nan"):
        run.step()
    run = Run().warm(2)
    theta, control = run.theta.clone(), run.control
    run.spoil = lambda draw, grad, loss: loss + bad if draw == control and not grad else loss
    line = f"loss at the start of iteration {run.optimizer.iterations + 1} is nan"
    with pytest.raises(FloatingPointError, match=line):
        run.step()
    assert torch.equal(run.theta, theta)
    run.spoil = no_spoiling  # whoever goes on in spite of it has a fresh gradient
    run.fresh, run.draws = True, 0
    run.step()
    assert torch.equal(run.calls[0].theta, theta)


def test_a_gradient_at_the_very_start_that_is_not_finite_is_an_error() -> None:
    run = Run()
    run.spoil = lambda _draw, _grad, loss: loss + torch.sqrt(loss - loss.detach())
    with pytest.raises(FloatingPointError, match="gradient at the start of iteration 1"):
        run.step()


def test_no_samples_at_all_are_an_error() -> None:
    for before in (0, 3):
        run = Run()
        for _ in range(before):
            run.step()
        with pytest.raises(ValueError, match="no samples"):
            run.optimizer.step(lambda: (lambda: torch.tensor(math.nan), 0))


# --- restart, repetition, refusals ---


def test_a_restored_optimizer_continues_bit_for_bit() -> None:
    for rejected in (False, True):
        run, restored, fresh = Run().warm(), Run(seed=1), Run()
        if rejected:
            run.reject()
        state = run.optimizer.state_dict()
        saved = copy.deepcopy(state)
        for other in (restored, fresh):
            other.net.load_state_dict(run.net.state_dict())
            other.x, other.y = run.x, run.y
            other.rng = copy.deepcopy(run.rng)
        restored.optimizer.load_state_dict(state)
        assert repr(restored.optimizer.state_dict()) == repr(saved)
        for _ in range(4):
            one, two = run.step(), restored.step()
            fresh.step()
            assert repr(one) == repr(two)
            assert torch.equal(run.theta, restored.theta)
            assert torch.equal(run.optimizer.average, restored.optimizer.average)
        assert not torch.equal(run.theta, fresh.theta), "the state matters"
        assert repr(state) == repr(saved), "the run that went on has changed it"


def test_a_state_of_another_network_or_rank_is_refused() -> None:
    run = Run().warm()
    state = run.optimizer.state_dict()
    smaller = StochasticAPTS([nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match=f"parameters {run.optimizer.flat.n}, not 3"):
        smaller.load_state_dict(state)
    for what in ("rank", "ranks"):
        options = {**state["options"], what: state["options"][what] + 1}
        with pytest.raises(ValueError, match=f"the state has {what} "):
            run.optimizer.load_state_dict({**state, "options": options})


def test_two_runs_are_equal_bit_for_bit() -> None:
    one, other = Run(), Run()
    results = [(one.step(), other.step()) for _ in range(8)]
    assert torch.equal(one.theta, other.theta)
    assert all(repr(a) == repr(b) for a, b in results)


@pytest.mark.parametrize(
    "wrong",
    [
        {"local_steps": 0},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"averaging": -1.0},
        {"averaging": math.nan},
        {"radius": 0.0},
        {"radius": math.inf},
        {"radius": math.nan},
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Run(**wrong)


def test_a_module_that_was_moved_and_samples_below_zero_are_told() -> None:
    run = Run()
    with pytest.raises(ValueError, match="samples -1 is negative"):
        run.optimizer.step(lambda: (lambda: torch.tensor(0.0), -1))
    run.net.double().float()
    with pytest.raises(RuntimeError, match="move the module first"):
        run.step()


def test_a_radius_at_its_floor_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(rule=NoisyRule(minimum=1e-3)).warm()
    with caplog.at_level(logging.WARNING, logger="apts_mpi"):
        run.step()
        assert not caplog.records
        for _ in range(25):
            run.reject()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "at its floor 1.0e-03" in told[0]
    assert "10 iterations in a row were rejected" in told[1]


# --- the plan ---


@repeatable
@given(ranks=st.integers(1, 4096), samples=st.integers(1, 10**8))
def test_the_plan_is_in_its_ranges_and_its_work_near_the_aim(ranks: int, samples: int) -> None:
    batch, steps = plan(ranks, samples)
    low, high = MINIBATCHES
    assert (low if ranks <= 16 else FEWEST) <= batch <= high
    assert 5 <= steps <= 1000
    assert steps >= SHORT or batch == FEWEST, "small minibatches before few steps"
    part = max(samples / ranks, 1.0)
    per_pass = math.ceil(part / batch)
    minibatch = part / per_pass
    # steps gradients, and a third of a minibatch forward on the control batch.
    work = ranks * minibatch * (steps + 1 / 3)
    if steps == 5:
        assert work >= OUTER_SAMPLES * (1 - 1e-9)
    elif steps == 1000:
        assert work <= OUTER_SAMPLES + ranks * minibatch
    else:
        assert OUTER_SAMPLES * (1 - 1e-9) <= work < OUTER_SAMPLES + ranks * minibatch * (1 + 1e-9)
    assert completed(TrainConfig(), ranks, samples).local_steps == steps


@repeatable
@given(
    ranks=st.integers(1, 4096),
    samples=st.integers(1, 10**8),
    batch=st.integers(1, 10**6),
    steps=st.integers(1, 1000),
)
def test_the_plan_keeps_what_is_given(ranks: int, samples: int, batch: int, steps: int) -> None:
    assert plan(ranks, samples, batch=batch, steps=steps) == (batch, steps)
    assert plan(ranks, samples, batch=batch)[0] == batch
    assert plan(ranks, samples, batch=batch)[1] >= 5
    chosen, kept = plan(ranks, samples, steps=steps)
    assert kept == steps
    assert (MINIBATCHES[0] if ranks <= 16 else FEWEST) <= chosen <= MINIBATCHES[1]


def test_the_plan_as_documented() -> None:
    found = [plan(2**k, 60_000) for k in range(7)]
    assert found == [(250, 42), (250, 21), (131, 20), (66, 20), (64, 10), (33, 10), (16, 10)]

"""Local steps under sampling noise: their mathematics, blow-ups, steps taken ahead."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

from apts_mpi.method.flat import FlatParameters
from apts_mpi.trust_region import metric, scaled
from apts_mpi.trust_region.metric import Metric
from apts_mpi.trust_region.objective import Pending
from apts_mpi.trust_region.scaled import ScaledSolver
from tests.devices import DEVICE
from tests.method.driving import driven
from tests.method.sampled import bad_numbers

torch.set_num_threads(1)


class Given:
    """A solver over n parameters, zero at first, whose minibatches have given gradients."""

    def __init__(self, n: int, *, steps: int, ahead: bool = False) -> None:
        self.flat = FlatParameters([nn.Parameter(torch.zeros(n))])
        self.start = torch.zeros(n)
        kept = [torch.zeros(n) for _ in range(3 if ahead else 0)]
        own = Metric(self.flat.vector, self.flat.gradient)
        self.solver = ScaledSolver(
            self.flat.vector, self.flat.gradient, own, steps=steps, kept=kept
        )
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
    own = problem.solver.metric
    own._fused = own._fused and fused  # both of torch's ways
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
    assert problem.solver.metric.learned == ours.t == 3 * steps
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
    first, second = metric.FIRST_DECAY**ages, metric.SECOND_DECAY**ages
    m = (first * gradients).sum(0) / first.sum()
    d = np.diag(np.sqrt((second * gradients**2).sum(0) / second.sum()) + metric.EPSILON)
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
        assert torch.equal(
            getattr(problem.solver.metric, name), getattr(without.solver.metric, name)
        )
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


@settings(max_examples=60, deadline=None, derandomize=True)
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
    assert problem.solver.metric.learned == 0
    assert torch.equal(problem.flat.vector, problem.start)

"""Local trust-region steps stay in their ball, keep their books, and waste no evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apts_mpi.method.flat import FlatParameters
from apts_mpi.trust_region.local import (
    FirstOrder,
    LocalResult,
    LocalSolver,
    Model,
    SecondOrder,
    norm_of,
)
from apts_mpi.trust_region.lsr1 import LSR1
from apts_mpi.trust_region.radius import RadiusRule
from tests.devices import DEVICE

torch.set_num_threads(1)
repeatable = settings(max_examples=50, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)
SOLVERS = ("sr1", "first-order", "first-order-inf")


class Bench:
    """A local solver on a random quadratic, indefinite at will, that records its evaluations."""

    def __init__(
        self,
        seed: int,
        solver: str,
        *,
        n: int = 6,
        steps: int = 5,
        shift: bool = True,
        convex: bool = False,
        rule: RadiusRule | None = None,
    ) -> None:
        rng = np.random.default_rng(seed)
        q = np.linalg.qr(rng.normal(size=(n, n)))[0]
        values = rng.uniform(0.1, 3.0, size=n)
        if not convex:
            values *= rng.choice([-1.0, 1.0], size=n)
        self.a = torch.as_tensor(q * values @ q.T)
        self.b = torch.as_tensor(rng.normal(size=n))
        self.shift = torch.as_tensor(rng.normal(size=n)).float() if shift else None
        self.flat = FlatParameters([nn.Parameter(torch.as_tensor(rng.normal(size=n)).float())])
        self.start = self.flat.vector.clone()
        self.norm = "inf" if solver.endswith("inf") else "2"
        model: Model = (
            SecondOrder(LSR1(n, device=DEVICE)) if solver == "sr1" else FirstOrder(self.norm)
        )
        rule = rule or RadiusRule()
        self.solver = LocalSolver(
            self.flat.vector, self.flat.gradient, model, rule, norm=self.norm, steps=steps
        )
        self.calls: list[tuple[bool, Tensor]] = []
        self.spoil: Callable[[int, float], float] = lambda _call, value: value

    def loss(self, x: Tensor) -> float:
        """The rank's own loss f_d, in float64."""
        x = x.double()
        return float(0.5 * x @ self.a @ x + self.b @ x)

    def consistent(self, d: Tensor) -> float:
        """The local objective at ``start + d``."""
        tilt = 0.0 if self.shift is None else float(self.shift.double() @ d.double())
        return self.loss(self.start.double() + d.double()) + tilt

    def gradient(self, x: Tensor) -> Tensor:
        return (self.a @ x.double() + self.b).float()

    def objective(self, with_gradient: bool) -> float:
        self.calls.append((with_gradient, self.flat.vector.clone()))
        self.flat.gradient.fill_(math.nan)
        if with_gradient:
            self.flat.gradient.copy_(self.gradient(self.flat.vector))
        return self.spoil(len(self.calls), self.loss(self.flat.vector))

    def run(self, radius: float, ball: float) -> LocalResult:
        self.calls = []
        self.flat.vector.copy_(self.start)
        gradient = self.gradient(self.start)
        return self.solver.run(
            self.objective,
            start=self.start,
            loss=self.loss(self.start),
            gradient=gradient if self.shift is None else gradient + self.shift,
            shift=self.shift,
            radius=radius,
            ball=ball,
        )


@repeatable
@given(
    seed=seeds,
    solver=st.sampled_from(SOLVERS),
    steps=st.integers(1, 8),
    shift=st.booleans(),
    radius=st.floats(1e-3, 3),
    ball=st.floats(1e-3, 3),
)
def test_the_correction_stays_in_the_ball_and_its_reduction_is_start_minus_end(
    seed: int, solver: str, steps: int, shift: bool, radius: float, ball: float
) -> None:
    bench = Bench(seed, solver, steps=steps, shift=shift)
    for _ in range(3):  # an L-SR1 model comes back with what it has learned
        result = bench.run(radius, ball)
        d = bench.solver.correction
        assert norm_of(d, bench.norm) <= ball * (1 + 1e-5)
        begin, end = bench.consistent(torch.zeros_like(d)), bench.consistent(d)
        scale = abs(begin) + abs(end) + float(d.norm()) * float(bench.b.norm() + 3.0)
        assert result.reduction == pytest.approx(begin - end, abs=2e-6 * scale)
        assert result.reduction >= 0.0
        assert result.accepted <= result.tried <= steps
        assert (result.accepted == 0) == (not d.any())
        assert result.tried == len(bench.calls)
        if result.hits_boundary:
            assert norm_of(d, bench.norm) >= 0.98 * ball
        bench.start.add_(d)


@repeatable
@given(seed=seeds, solver=st.sampled_from(SOLVERS), radius=st.floats(1e-3, 3))
def test_no_point_is_evaluated_outside_the_ball_or_at_the_start(
    seed: int, solver: str, radius: float
) -> None:
    bench = Bench(seed, solver)
    bench.run(radius, 0.7)
    assert bench.calls, "a gradient that is not zero always gives a step"
    for _, point in bench.calls:
        assert norm_of(point - bench.start, bench.norm) <= 0.7 * (1 + 1e-5)
        assert not torch.equal(point, bench.start)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("solver", SOLVERS)
def test_only_a_model_that_learns_asks_for_a_gradient_at_its_last_step(
    solver: str, steps: int
) -> None:
    bench = Bench(1, solver, steps=steps)
    result = bench.run(0.01, 100.0)
    asked = [with_gradient for with_gradient, _ in bench.calls]
    assert asked == [True] * (steps - 1) + [solver == "sr1"]
    assert result.tried == steps


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_trial_loss_that_is_not_finite_is_a_rejection_that_shrinks_the_radius(
    solver: str, bad: float
) -> None:
    bench = Bench(2, solver, steps=3)
    bench.spoil = lambda _call, _value: bad
    result = bench.run(0.1, 100.0)
    assert (result.accepted, result.tried, result.reduction) == (0, 3, 0.0)
    assert not bench.solver.correction.any()
    assert not result.hits_boundary
    assert result.radius == pytest.approx(0.1 / 8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_rejected_step_is_left_out_and_the_next_one_starts_where_it_started(solver: str) -> None:
    bench = Bench(3, solver, steps=2)
    bench.spoil = lambda call, value: value + 100.0 * (call == 1)
    result = bench.run(0.1, 100.0)
    assert (result.accepted, result.tried) == (1, 2)
    (_, first), (_, second) = bench.calls
    moved = second - bench.start
    assert norm_of(first - bench.start, bench.norm) == pytest.approx(0.1, rel=1e-4)
    assert norm_of(moved, bench.norm) == pytest.approx(0.05, rel=1e-4)
    assert torch.allclose(bench.solver.correction, moved, atol=1e-6)
    fell = bench.consistent(torch.zeros_like(moved)) - bench.consistent(moved)
    assert result.reduction == pytest.approx(fell, abs=1e-5)


@pytest.mark.parametrize("solver", ["sr1", "first-order"])
def test_steps_end_at_the_ball_in_the_2_norm(solver: str) -> None:
    bench = Bench(4, solver, steps=8)
    result = bench.run(1.0, 0.05)
    assert (result.tried, result.accepted, result.hits_boundary) == (1, 1, True)
    assert norm_of(bench.solver.correction, "2") == pytest.approx(0.05, rel=1e-5)


def test_steps_go_on_along_the_walls_in_the_infinity_norm() -> None:
    bench = Bench(4, "first-order-inf", steps=8, shift=False)
    curvature = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 100.0], dtype=torch.float64)
    target = torch.tensor([-9.0, 9.0, -9.0, 9.0, -9.0, -0.03], dtype=torch.float64)
    bench.a = torch.diag(curvature)
    bench.b = -curvature * (bench.start.double() + target)
    result = bench.run(0.05, 0.05)
    assert result.hits_boundary
    assert result.accepted >= 2
    d = bench.solver.correction
    assert torch.allclose(d[:5], 0.05 * target[:5].sign().float(), atol=1e-6), "at the walls"
    assert float(d[5]) == pytest.approx(-0.03, abs=0.01), "between them"


def test_a_stationary_start_takes_no_step() -> None:
    for solver in ("first-order", "first-order-inf", "sr1"):
        bench = Bench(5, solver, shift=False, convex=True)
        bench.b.copy_(-(bench.a @ bench.start.double()))
        bench.gradient = lambda x: torch.zeros_like(x)  # type: ignore[method-assign]
        result = bench.run(0.1, 1.0)
        assert (result.tried, result.reduction, bench.calls) == (0, 0.0, [])


@repeatable
@given(seed=seeds, solver=st.sampled_from(SOLVERS))
def test_the_first_step_follows_the_consistent_gradient_not_the_ranks_own(
    seed: int, solver: str
) -> None:
    bench = Bench(seed, solver)
    assert bench.shift is not None
    bench.run(1e-3, 1.0)
    total = bench.gradient(bench.start) + bench.shift
    step = (bench.calls[0][1] - bench.start).double()
    direction = total.sign() if bench.norm == "inf" else total / total.norm()
    assert float((step / 1e-3 + direction).abs().max()) < 2e-3


def test_the_lsr1_model_learns_from_rejected_steps_too() -> None:
    rule = RadiusRule(accept=0.2)
    bench = Bench(6, "sr1", steps=4, rule=rule, convex=True)
    bench.spoil = lambda _call, value: value + 100.0
    assert bench.run(0.1, 1.0).accepted == 0
    model = bench.solver.model
    assert isinstance(model, SecondOrder)
    assert model.hessian.pairs >= 1
    s = bench.calls[0][1] - bench.start
    learned = SecondOrder(LSR1(6, device=DEVICE))
    learned.learn(s, bench.gradient(bench.calls[0][1]) - bench.gradient(bench.start))
    v = torch.ones(6)
    assert not torch.equal(learned.hessian.product(v), v)


def test_five_lsr1_steps_beat_five_first_order_ones_on_a_quadratic() -> None:
    better = 0
    for seed in range(20):
        second, first = (Bench(seed, s, convex=True, steps=5) for s in ("sr1", "first-order"))
        better += second.run(0.5, 100.0).reduction > first.run(0.5, 100.0).reduction
    assert better >= 15

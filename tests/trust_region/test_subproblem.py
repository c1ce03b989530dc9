"""Trust-region subproblems meet their optimality conditions and match independent solvers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from apts_mpi.trust_region.lsr1 import LSR1
from apts_mpi.trust_region.subproblem import Step, box_step, first_order_step, lsr1_step

torch.set_num_threads(1)
repeatable = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)
exponents = st.floats(-3, 3)
Vector = NDArray[np.float64]


class Problem:
    """A random L-SR1 model in float64 and, independent of its spectrum, its dense matrix."""

    def __init__(self, seed: int, n: int, memory: int, *, convex: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.model = LSR1(n, memory=memory, dtype=torch.float64)
        q = np.linalg.qr(self.rng.normal(size=(n, n)))[0]
        values = self.rng.uniform(0.1, 4.0, size=n)
        if not convex:
            values[self.rng.random(n) < 0.5] *= -1.0
        for _ in range(memory + 1):
            s = self.rng.normal(size=n)
            self.model.update(torch.from_numpy(s), torch.from_numpy(q * values @ q.T @ s))
        eye = torch.eye(n, dtype=torch.float64)
        b = np.stack([self.model.product(column).numpy() for column in eye])
        self.b = (b + b.T) / 2.0
        self.values, self.vectors = scipy.linalg.eigh(self.b)
        self.norm = float(np.abs(self.values).max())

    def gradient(self, exponent: float) -> Vector:
        return np.asarray(self.rng.normal(size=len(self.b)) * 10**exponent)

    def value(self, g: Vector, p: Vector) -> float:
        return float(g @ p + p @ self.b @ p / 2.0)

    def solve(self, g: Vector, radius: float) -> tuple[Vector, Step]:
        out = torch.full((len(g),), math.nan, dtype=torch.float64)
        step = lsr1_step(torch.from_numpy(g), self.model, radius, out)
        return out.numpy(), step

    def check(self, g: Vector, radius: float) -> Step:
        """Solve, and hold the solution against the theory and an independent solver."""
        p, step = self.solve(g, radius)
        sigma, length = step.multiplier, float(np.linalg.norm(p))
        scale = float(np.linalg.norm(g)) + self.norm * min(radius, max(length, 1e-300))
        assert sigma >= 0.0
        assert length <= radius * (1.0 + 1e-8)
        assert np.linalg.norm(self.b @ p + sigma * p + g) <= 1e-8 * scale
        assert sigma * (radius - length) <= 1e-8 * scale
        assert self.values[0] + sigma >= -1e-8 * self.norm
        energy = scale * length
        # p itself is good to rounding; its promise is summed over an eigenbasis that may be
        # orthonormal to no more than the root of it (1.04e-8 was seen).
        assert abs(step.predicted + self.value(g, p)) <= 1e-7 * energy
        best = self.value(g, dense_solution(self.values, self.vectors, g, radius))
        assert self.value(g, p) <= best + 1e-8 * energy
        assert step.predicted >= 0.0
        assert abs(step.length - length) <= 1e-8 * length
        if abs(length / radius - 1.0) > 1e-5 or abs(length / radius - 1.0) < 1e-7:
            assert step.hits_boundary == (length > radius * (1.0 - 1e-6))
        return step


def dense_solution(values: Vector, vectors: Vector, g: Vector, radius: float) -> Vector:
    """All eigenvalues, the secular equation by bracketing, the hard case by its definition."""
    c = vectors.T @ g
    low = values[0]

    def v(sigma: float) -> Vector:
        shifted = values + sigma
        safe = np.where(np.abs(shifted) > 0.0, shifted, 1.0)
        return np.where(np.abs(shifted) > 0.0, -c / safe, 0.0)

    if low > 0.0 and np.linalg.norm(v(0.0)) <= radius:
        return np.asarray(vectors @ v(0.0))
    floor = max(-low, 0.0)
    gap = 1e-14 * float(np.abs(values).max())
    if np.linalg.norm(v(floor + gap)) <= radius:  # hard, or so near that nothing is lost
        w = np.where(values - low <= gap, 0.0, v(floor))
        w[0] = -math.copysign(math.sqrt(max(radius**2 - float(w @ w), 0.0)), c[0])
        return np.asarray(vectors @ w)
    high = floor + 2.0 * float(np.linalg.norm(g)) / radius + gap
    sigma = scipy.optimize.brentq(
        lambda t: 1.0 / radius - 1.0 / np.linalg.norm(v(t)), floor + gap, high, xtol=1e-300
    )
    w = v(sigma)
    return np.asarray(vectors @ (w * min(1.0, radius / np.linalg.norm(w))))


@repeatable
@given(
    seed=seeds,
    n=st.integers(2, 14),
    memory=st.integers(1, 10),
    slope=exponents,
    reach=exponents,
    convex=st.booleans(),
)
def test_the_lsr1_step_is_the_global_minimiser_in_the_ball(
    seed: int, n: int, memory: int, slope: float, reach: float, convex: bool
) -> None:
    problem = Problem(seed, n, memory, convex=convex)
    problem.check(problem.gradient(slope), 10**reach)


@repeatable
@given(seed=seeds, n=st.integers(2, 14), memory=st.integers(1, 10), far=st.floats(1.01, 1e4))
def test_the_hard_case_is_filled_up_along_a_lowest_eigenvector(
    seed: int, n: int, memory: int, far: float
) -> None:
    problem = Problem(seed, n, memory)
    low = problem.values[0]
    assume(low < -1e-2 * problem.norm)
    lowest = problem.vectors[:, problem.values - low <= 1e-9 * problem.norm]
    g = problem.gradient(0.0)
    for _ in range(3):
        g = g - lowest @ (lowest.T @ g)
    others = problem.values - low > 1e-9 * problem.norm
    short = problem.vectors[:, others] @ (
        problem.vectors[:, others].T @ g / (problem.values[others] - low)
    )
    radius = far * float(np.linalg.norm(short))
    step = problem.check(g, radius)
    assert step.multiplier == pytest.approx(-low, rel=1e-7)
    assert step.hits_boundary


@repeatable
@given(
    seed=seeds,
    n=st.integers(2, 14),
    memory=st.integers(1, 10),
    part=st.floats(-17, -3),
    sign=st.sampled_from([-1.0, 1.0]),
    reach=st.floats(-1, 3),
)
def test_the_nearly_hard_case_keeps_its_accuracy(
    seed: int, n: int, memory: int, part: float, sign: float, reach: float
) -> None:
    problem = Problem(seed, n, memory)
    assume(problem.values[0] < 0.0)
    lowest = problem.vectors[:, 0]
    g = problem.gradient(0.0)
    g = g - lowest * (lowest @ g) + sign * 10**part * lowest
    problem.check(g, 10**reach)


@repeatable
@given(seed=seeds, n=st.integers(1, 14), memory=st.integers(1, 10), radius=st.floats(1e-3, 1e3))
def test_a_vanishing_gradient_is_left_only_along_negative_curvature(
    seed: int, n: int, memory: int, radius: float
) -> None:
    problem = Problem(seed, n, memory)
    step = problem.check(np.zeros(n), radius)
    low = problem.values[0]
    expected = max(-low, 0.0) * radius**2 / 2.0
    assert step.predicted == pytest.approx(expected, abs=1e-10 * problem.norm * radius**2)


@repeatable
@given(seed=seeds, n=st.integers(1, 12), slope=exponents, reach=exponents)
def test_a_model_without_pairs_takes_the_newton_step_of_the_identity_or_stops_at_the_ball(
    seed: int, n: int, slope: float, reach: float
) -> None:
    g = np.random.default_rng(seed).normal(size=n) * 10**slope
    out = torch.zeros(n, dtype=torch.float64)
    step = lsr1_step(torch.from_numpy(g), LSR1(n, dtype=torch.float64), 10**reach, out)
    expected = -g * min(1.0, 10**reach / float(np.linalg.norm(g)))
    assert np.allclose(out.numpy(), expected, rtol=1e-9, atol=0.0)
    assert step.predicted == pytest.approx(-float(g @ expected + expected @ expected / 2), rel=1e-9)


@repeatable
@given(seed=seeds, n=st.integers(2, 14), memory=st.integers(1, 10))
def test_the_prediction_grows_with_the_radius_and_sigma_falls(
    seed: int, n: int, memory: int
) -> None:
    problem = Problem(seed, n, memory)
    g = problem.gradient(0.0)
    steps = [problem.solve(g, radius)[1] for radius in np.geomspace(1e-3, 1e3, 25)]
    for tight, wide in pairwise(steps):
        assert wide.predicted >= tight.predicted * (1.0 - 1e-9)
        assert wide.multiplier <= tight.multiplier * (1.0 + 1e-7) + 1e-9


@repeatable
@given(seed=seeds, n=st.integers(1, 12), slope=exponents, reach=exponents)
def test_the_first_order_step_minimises_its_linear_model_over_the_ball(
    seed: int, n: int, slope: float, reach: float
) -> None:
    rng = np.random.default_rng(seed)
    g, radius = rng.normal(size=n) * 10**slope, 10**reach
    out = torch.zeros(n, dtype=torch.float64)
    step = first_order_step(torch.from_numpy(g), radius, out)
    p = out.numpy()
    assert np.linalg.norm(p) == pytest.approx(radius, rel=1e-12)
    assert step.length == pytest.approx(radius, rel=1e-12)
    # Cauchy-Schwarz is the bound of every linear model over the ball, and it is attained
    bound = radius * float(np.linalg.norm(g))
    assert step.predicted == pytest.approx(bound, rel=1e-12)
    assert -float(g @ p) == pytest.approx(bound, rel=1e-12)
    assert step.hits_boundary


@repeatable
@given(seed=seeds, n=st.integers(1, 6), radius=st.floats(0.01, 3), zeros=st.booleans())
def test_the_box_step_is_the_linear_programs_solution(
    seed: int, n: int, radius: float, zeros: bool
) -> None:
    rng = np.random.default_rng(seed)
    ball = 1.0
    g = rng.normal(size=n)
    g[0] *= not zeros
    d = rng.uniform(-ball, ball, size=n)
    d[rng.random(n) < 0.3] = ball
    out = torch.full((n,), math.nan, dtype=torch.float64)
    step = box_step(torch.from_numpy(g), torch.from_numpy(d), radius, ball, out)
    p = out.numpy()
    bounds = np.stack((np.maximum(-radius, -ball - d), np.minimum(radius, ball - d)), axis=1)
    assert (np.abs(p) <= radius + 1e-12).all()
    assert (np.abs(d + p) <= ball + 1e-12).all()
    assert step.length == pytest.approx(float(np.abs(p).max()), abs=1e-9)
    reference = scipy.optimize.linprog(g, bounds=bounds)
    assert float(g @ p) == pytest.approx(reference.fun, abs=1e-9)
    assert step.predicted == pytest.approx(-reference.fun, abs=1e-9)
    assert (np.abs(p[g == 0.0]) <= 1e-15).all(), "nothing moves without a slope"


def test_no_slope_gives_no_first_order_step() -> None:
    zero, out = torch.zeros(4), torch.ones(4)
    step = first_order_step(zero, 1.0, out)
    assert (step.predicted, step.hits_boundary, bool(out.any())) == (0.0, False, False)
    corner, out = torch.full((4,), -1.0), torch.ones(4)
    step = box_step(torch.ones(4), corner, 0.5, 1.0, out)
    assert (step.predicted, step.hits_boundary, bool(out.any())) == (0.0, False, False)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_promises_nothing_usable(bad: float) -> None:
    g = torch.tensor([1.0, bad])
    model = LSR1(2, memory=1)
    model.update(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0]))
    out = torch.zeros(2)
    steps = [first_order_step(g, 1.0, out), lsr1_step(g, model, 1.0, out)]
    assert not any(math.isfinite(step.predicted) for step in steps)

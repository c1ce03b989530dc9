"""The composite norm's steps: hidden matrices by their polar factors, all else as the diagonal."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from apts_mpi.method.layers import Layer
from apts_mpi.method.torch_state import learned_once
from apts_mpi.trust_region.metric import FIRST_DECAY, SECOND_DECAY, SPECTRAL, Metric, Span
from apts_mpi.trust_region.polar import in_blocks, polar_factors

torch.set_num_threads(1)
TALL, WIDE = Layer(3, 7, 4, "hidden"), Layer(31, 2, 5, "hidden")
N = 45  # 3 numbers, TALL, WIDE, 4 numbers
OUTSIDE = [0, 1, 2, 41, 42, 43, 44]


def made(hidden: list[Layer]) -> tuple[Metric, Tensor, Tensor]:
    """A composite metric with its parameters, zeros, and its gradient."""
    theta, g = torch.zeros(N), torch.zeros(N)
    return Metric(theta, g, hidden), theta, g


def gradients(steps: int) -> Tensor:
    """Random, of many sizes."""
    torch.manual_seed(1)
    return torch.randn(steps, N) * torch.logspace(-3, 2, N)


@pytest.mark.parametrize("layer", [TALL, WIDE])
def test_a_hidden_matrix_moves_along_the_polar_factor_of_its_moment(layer: Layer) -> None:
    metric, theta, g = made([TALL, WIDE])
    m, squares = torch.zeros(N), []
    for k, gradient in enumerate(gradients(6), 1):
        g.copy_(gradient * (1.0 if k < 4 else 0.01))
        before = theta.clone()
        metric.step(0.01)
        m.lerp_(g, 1.0 - FIRST_DECAY)
        squares.append(float(layer.of(m).norm()) ** 2 / (1.0 - FIRST_DECAY**k) ** 2)
        weights = [SECOND_DECAY ** (k - j) for j in range(1, k + 1)]
        usual = sum(w * each for w, each in zip(weights, squares, strict=True)) / sum(weights)
        q = min(1.0, squares[-1] / usual)
        (p,) = polar_factors([layer.of(torch.lerp(m, g, 1.0 - FIRST_DECAY))])
        length = 0.01 * q * SPECTRAL * math.sqrt(max(layer.rows, layer.columns))
        assert torch.allclose(layer.of(theta - before), -length * p, atol=1e-6)
    assert q < 1.0


def test_a_large_matrix_moves_by_blocks() -> None:
    theta, g = torch.zeros(N), gradients(1)[0]
    metric = Metric(theta, g, [TALL, WIDE], part=0.0, most=3)
    metric.step(0.01)
    looking = (1.0 - FIRST_DECAY**2) * g  # after one gradient
    for layer in (TALL, WIDE):
        (p,) = in_blocks([layer.of(looking)], 3)
        length = 0.01 * SPECTRAL * math.sqrt(max(layer.rows, layer.columns))
        assert torch.allclose(layer.of(theta), -length * p, atol=1e-6)
        (whole,) = polar_factors([layer.of(looking)])
        assert torch.allclose(p, whole, atol=1e-2) == (layer is WIDE)  # of two rows
    slope = metric.first_step(direction := g.clone())
    assert slope == pytest.approx(float(g @ direction), rel=1e-5)
    assert torch.allclose(TALL.of(direction), -100.0 * TALL.of(theta), atol=1e-4)


def test_a_step_vanishes_with_its_gradient() -> None:
    metric, theta, g = made([TALL, WIDE])
    lengths = []
    for k, gradient in enumerate(gradients(200)):
        g.copy_(gradient * (1.0 if k < 100 else 0.0))
        before = theta.clone()
        metric.step(0.01)
        lengths.append(float((theta - before)[3:41].norm()))
    assert max(lengths[-50:]) < 0.03 * min(lengths[:100])


@pytest.mark.parametrize(("part", "least"), [(1.0, None), (0.5, None), (0.0, 1.0)])
def test_a_moment_of_a_part_of_its_usual_length_still_has_a_full_step(
    part: float, least: float | None
) -> None:
    theta, g = torch.zeros(N), torch.zeros(N)
    metric, gradient, lengths = Metric(theta, g, [TALL], part=part), gradients(1)[0], list[float]()
    for k in range(100):  # the same but for its length, of which 0.6 is left in the end
        g.copy_(gradient * (1.0 if k < 40 else 0.6))
        before = theta.clone()
        metric.step(0.01)
        lengths.append(float((theta - before)[TALL.part].norm()))
    usual = (40 + 60 * 0.36) / 100  # about: later ones weigh a little more
    share = lengths[-1] / lengths[0]
    assert share == pytest.approx(least or min(1.0, 0.36 / usual / part**2), rel=0.1)
    assert (part < 1.0) == (share == pytest.approx(1.0, rel=1e-3))


def test_where_nobody_has_looked_at_lengths_that_of_a_state_is_usual() -> None:
    theta, g = torch.zeros(N), torch.zeros(N)
    full, bounded = Metric(theta, g, [TALL], part=0.0), Metric(theta, g, [TALL], part=1.0)
    gradient, lengths = gradients(1)[0], list[float]()
    for k in range(100):
        g.copy_(gradient * (1.0 if k < 40 else 0.1))
        if k == 40:
            bounded.load_state_dict(full.state_dict())
        before = theta.clone()
        (full if k < 40 else bounded).step(0.01)
        lengths.append(float((theta - before)[TALL.part].norm()))
    assert lengths[-1] < 0.1 * lengths[0]


def test_in_between_a_matrix_goes_on_along_its_last_polar_factor() -> None:
    theta, g = torch.zeros(N), torch.zeros(N)
    metric, moves = Metric(theta, g, [TALL], every=3), []
    for gradient in gradients(7):
        g.copy_(gradient)
        before = theta.clone()
        metric.step(0.01)
        moves.append((theta - before)[TALL.part])
    same = [float(torch.cosine_similarity(a, b, dim=0)) > 0.999 for a, b in pairwise(moves)]
    assert same == [False, True, False, True, True, False]


def test_steps_that_are_forgotten_leave_no_trace() -> None:
    metric, theta, g = made([TALL, WIDE])
    first, second, third = gradients(3)
    g.copy_(first)
    metric.step(0.01)
    mark, kept = metric.marked(), [each.clone() for each in (theta, metric.m, metric.v)]
    ends = []
    for middle in (second, third):
        g.copy_(middle)
        metric.step(0.01)
        metric.back_to(mark)
        for each, before in zip((theta, metric.m, metric.v), kept, strict=True):
            each.copy_(before)
        g.copy_(third)
        metric.step(0.01)
        ends.append(theta.clone())
        metric.back_to(mark)
        for each, before in zip((theta, metric.m, metric.v), kept, strict=True):
            each.copy_(before)
    assert torch.equal(*ends)


def test_what_is_no_hidden_matrix_moves_as_in_the_diagonal_metric() -> None:
    metric, theta, g = made([TALL, WIDE])
    other, flat = torch.zeros(N), torch.zeros(N)
    diagonal = Metric(other, flat)
    for gradient in gradients(4):
        g.copy_(gradient), flat.copy_(gradient)
        metric.step(0.01)
        diagonal.step(0.01)
    assert torch.allclose(theta[OUTSIDE], other[OUTSIDE], rtol=1e-6)
    assert not torch.allclose(theta[3:41], other[3:41])


def test_without_hidden_matrices_it_is_the_diagonal_metric() -> None:
    metric, theta, g = made([])
    other, flat = torch.zeros(N), torch.zeros(N)
    diagonal = Metric(other, flat)
    for gradient in gradients(3):
        g.copy_(gradient), flat.copy_(gradient)
        metric.step(0.01)
        diagonal.step(0.01)
    assert torch.equal(theta, other)


def test_hidden_matrices_alone_are_enough() -> None:
    theta, g = torch.zeros(10), torch.randn(10)
    Metric(theta, g, [Layer(0, 2, 5, "hidden")]).step(0.1)
    assert bool(theta.all())


def test_all_blocks_of_a_step_have_entries_of_the_size_of_the_radius() -> None:
    metric, theta, g = made([Layer(3, 4, 9, "hidden")])
    g.copy_(torch.randn(N))
    metric.step(0.01)
    root = float(theta[3:39].square().mean().sqrt())
    assert root == pytest.approx(0.01 * SPECTRAL, rel=0.3)
    assert torch.allclose(theta[[0, 1, 2]].abs(), torch.full((3,), 0.01), rtol=1e-3)


def test_a_shared_displacement_leaves_the_moments_of_hidden_matrices() -> None:
    metric, _, g = made([TALL, WIDE])
    g.copy_(gradients(1)[0])
    metric.step(0.01)
    before = metric.m.clone()
    metric.share(torch.full((N,), 0.5), 0.05)
    assert torch.equal(metric.m[3:41], before[3:41])
    assert bool((metric.m[OUTSIDE] < 0).all()), "against the displacement"


@pytest.mark.parametrize("hidden", [[], [TALL], [TALL, WIDE]])
def test_the_first_step_has_the_slope_it_says(hidden: list[Layer]) -> None:
    metric, _, _ = made(hidden)
    gradient = gradients(1)[0]
    step = gradient.clone()
    slope = metric.first_step(step)
    assert slope == pytest.approx(float(gradient.double() @ step.double()), rel=1e-5)
    assert torch.equal(step[OUTSIDE], gradient[OUTSIDE].sign())


def test_a_state_that_is_restored_steps_on_bit_for_bit() -> None:
    metric, theta, g = made([TALL, WIDE])
    first, second = gradients(2)
    g.copy_(first)
    metric.step(0.01)
    other, again, gradient = made([TALL, WIDE])
    again.copy_(theta)
    other.load_state_dict(metric.state_dict())
    g.copy_(second), gradient.copy_(second)
    metric.step(0.01)
    other.step(0.01)
    assert torch.equal(theta, again)


def spanned(spans: list[Span]) -> Tensor:
    """Where three steps of 0.01 lead from ones, with these settings."""
    theta, g = torch.ones(N), torch.zeros(N)
    metric = Metric(theta, g, [TALL, WIDE], spans)
    for gradient in gradients(3):
        g.copy_(gradient)
        metric.step(0.01)
    return theta


def test_a_factor_on_the_radius_scales_the_steps_of_its_parameters_alone() -> None:
    alike, other = spanned([]), spanned([Span(31), Span(N, scale=0.5)])
    assert torch.equal(other[:31], alike[:31])
    assert torch.allclose(other[31:] - 1.0, 0.5 * (alike[31:] - 1.0), atol=1e-5)
    assert torch.equal(spanned([Span(31), Span(N)]), alike)


def test_decay_shrinks_its_parameters_in_proportion_to_their_radius_before_each_step() -> None:
    alike, other = spanned([]), spanned([Span(31, decay=2.0), Span(N)])
    assert torch.equal(other[31:], alike[31:])
    assert torch.allclose(alike[:31] - other[:31], torch.full((31,), 1.0 - 0.98**3), atol=2e-3)
    scaled = spanned([Span(N, scale=0.5, decay=2.0)]) - spanned([Span(N, scale=0.5)])
    assert torch.allclose(scaled, torch.full((N,), 0.99**3 - 1.0), atol=1e-3)


@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_a_shared_displacement_has_the_moment_without_decay_and_factor(decay: float) -> None:
    theta, g = torch.ones(N), torch.full((N,), 0.3)
    metric = Metric(theta, g, spans=[Span(N, scale=0.5, decay=decay)])
    for _ in range(4):
        metric.step(1e-4)
    moment, moved = metric.m.clone(), theta - 1.0
    theta.fill_(1.0)  # where the steps began
    metric.share(moved, 4 * 1e-4)
    assert torch.allclose(metric.m, moment, rtol=2e-3)


def test_spans_change_between_steps() -> None:
    theta, g = torch.ones(N), torch.ones(N)
    metric = Metric(theta, g, [TALL], [Span(31), Span(N)])
    metric.set_spans([Span(31, scale=2.0), Span(N, decay=1.0)])
    metric.step(0.01)
    assert torch.allclose(theta[41:], torch.full((4,), 0.98), atol=1e-5)
    assert torch.allclose(theta[:3], torch.full((3,), 0.98), atol=1e-5)


def test_averages_that_begin_anew_leave_the_steps_their_length() -> None:
    metric, theta, g = made([TALL, WIDE])
    g.copy_(gradients(1)[0])
    for _ in range(300):
        metric.step(0.01)
    state = metric.state_dict()
    learned_once(state)
    metric.load_state_dict(state)
    before = theta.clone()
    metric.step(0.01)
    root = float((theta - before)[TALL.part].square().mean().sqrt())
    assert root == pytest.approx(0.01 * SPECTRAL, rel=0.3)

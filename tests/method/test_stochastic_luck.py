"""The stochastic method where losses and gradients are not finite, or batches empty."""

from __future__ import annotations

import math

import pytest
import torch

from tests.method.sampled import Run, bad_numbers, no_spoiling

torch.set_num_threads(1)


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
    assert not state["velocity"].any()
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

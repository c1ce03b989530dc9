"""The stochastic method on one process: what an iteration evaluates, sends, averages, keeps."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import gammaln
from torch import Tensor, nn

from apts_mpi.method.momentum import FULL_COSINE
from tests.devices import DEVICE
from tests.method.sampled import STEPS, Run, no_spoiling

torch.set_num_threads(1)


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
    assert float(run.optimizer.state_dict()["velocity"].abs().max()) > 0
    assert not torch.equal(theta, average)
    run.spoil = spoil
    result = run.step()
    assert not result.accepted
    assert not torch.equal(run.calls[-1].theta, theta), "something was tried"
    assert torch.equal(run.theta, theta)
    assert torch.equal(run.optimizer.average, average)
    assert not run.optimizer.state_dict()["velocity"].any()
    assert run.optimizer.state_dict()["ratio"] == [0.0, 0.0]
    assert run.optimizer.now.accepted == accepted
    assert 0.1 * radius <= run.optimizer.radius == result.radius <= 0.5 * radius
    assert math.isfinite(result.loss)
    assert math.isnan(result.rho) if how != "higher" else result.rho < 0.0
    run.spoil = no_spoiling
    run.warm()
    assert bool(run.theta.isfinite().all())
    assert not torch.equal(run.theta, theta), "it goes on"


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
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "velocity": u.float()})
    result = run.step()
    s = run.calls[-1].theta.double() - theta
    mu = 0.6 * min(max(cosine / FULL_COSINE, 0.0), 1.0)
    assert torch.allclose(s, d + mu * (mu * u + d), atol=1e-3 * float(d.abs().max()))
    if result.accepted:
        moved = run.optimizer.state_dict()["velocity"].double()
        assert torch.allclose(moved, mu * u + d, atol=1e-3 * float(d.abs().max()))


def test_without_momentum_a_correction_is_what_joined() -> None:
    run = Run(momentum=0.0)
    for _ in range(5):
        theta = run.theta.clone()
        if run.step().accepted:
            s = run.theta - theta
            assert torch.allclose(run.optimizer.state_dict()["velocity"], s, atol=1e-6)


def test_the_loss_falls() -> None:
    run = Run()
    first = run.loss()
    for _ in range(40):
        run.step()
    with run.optimizer.averaged():
        assert run.loss() < 0.3 * first

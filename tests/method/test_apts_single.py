"""The whole method on one process, without mpirun."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi.comm.communicator import Comm
from apts_mpi.trust_region.local import norm_of
from tests.method.driving import Deterministic

torch.set_num_threads(1)

METHODS: dict[str, dict[str, Any]] = {
    "sr1": {},
    "first-order": {"local_solver": "first-order"},
    "first-order-inf": {"local_solver": "first-order", "norm": "inf"},
}
every_method = pytest.mark.parametrize("method", METHODS)


class Run:
    """A small classifier with its optimizer; records where its closure was called, and how."""

    def __init__(self, seed: int = 0, **options: Any) -> None:
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        self.x, self.y = torch.randn(40, 5), torch.randint(0, 3, (40,))
        self.apts = Deterministic(self.net.parameters(), comm=Comm(), **options)
        self.calls: list[tuple[bool, Tensor]] = []
        self.spoil: Callable[[int, Tensor], Tensor] = lambda _call, loss: loss

    @property
    def theta(self) -> Tensor:
        return self.apts.flat.vector

    def closure(self) -> Tensor:
        self.calls.append((torch.is_grad_enabled(), self.theta.clone()))
        return self.spoil(len(self.calls), cross_entropy(self.net(self.x).double(), self.y))

    def step(self, *, same_batch: bool = True) -> Any:
        return self.apts.step(self.closure, samples=len(self.x), same_batch=same_batch)


@every_method
def test_the_gradient_it_uses_is_that_of_finite_differences(method: str) -> None:
    run = Run(**METHODS[method])
    for _ in range(3):
        run.step()
    used = run.apts.state_dict()["gradient"].double()
    twin = copy.deepcopy(run.net).double()
    vector = nn.utils.parameters_to_vector(twin.parameters()).detach()

    def loss(theta: Tensor) -> float:
        nn.utils.vector_to_parameters(theta, twin.parameters())
        with torch.no_grad():
            return float(cross_entropy(twin(run.x.double()), run.y))

    moves = 1e-5 * torch.eye(len(vector), dtype=torch.float64)
    differences = torch.tensor([(loss(vector + e) - loss(vector - e)) / 2e-5 for e in moves])
    assert float(used.abs().max()) > 1e-3
    assert float((used - differences).abs().max()) <= 1e-5 * float(differences.abs().max()) + 1e-7


@every_method
@pytest.mark.parametrize("global_step", [True, False])
def test_the_loss_falls_and_is_the_loss_at_the_new_iterate(method: str, global_step: bool) -> None:
    run = Run(**METHODS[method], global_step=global_step)
    first = float(run.closure().detach())
    told = [run.step().loss for _ in range(15)]
    assert all(later <= earlier + 1e-7 for earlier, later in pairwise(told))
    assert told[-1] < 0.7 * first
    assert told[-1] == pytest.approx(float(run.closure().detach()), rel=1e-12)


@every_method
@pytest.mark.parametrize("bad", [math.inf, math.nan, -math.inf])
@pytest.mark.parametrize("same_batch", [True, False])
def test_trial_points_without_a_finite_loss_leave_the_parameters_bit_for_bit(
    method: str, bad: float, same_batch: bool
) -> None:
    run = Run(**METHODS[method], radius=0.5)
    run.step(same_batch=same_batch)
    before = run.theta.clone()
    run.calls.clear()
    first = 0 if same_batch else 1  # a new batch's loss at the iterate itself
    run.spoil = lambda call, loss: loss if call <= first else loss + bad
    result = run.step(same_batch=same_batch)
    assert len(run.calls) > first
    assert not any(torch.equal(point, before) for _, point in run.calls[first:])
    assert torch.equal(run.theta, before)
    assert (result.accepted, result.global_accepted, result.local_accepted) == (False, False, 0)
    assert math.isfinite(result.loss)
    run.spoil = lambda _call, loss: loss
    assert math.isfinite(run.step(same_batch=same_batch).loss), "it goes on afterwards"


@every_method
def test_a_joined_correction_that_fails_is_taken_back_bit_for_bit(method: str) -> None:
    run = Run(**METHODS[method], radius=0.05, global_step=False, local_steps=1)
    before = run.theta.clone()
    run.spoil = lambda call, loss: loss + 50.0 * (call == 3)  # start, local trial, joined trial
    result = run.step()
    assert len(run.calls) == 3
    assert (result.local_accepted, result.accepted) == (1, False)
    assert result.rho < 0
    assert not torch.equal(run.calls[2][1], before)
    assert torch.equal(run.theta, before)
    assert result.radius == pytest.approx(0.025, rel=1e-6)  # the norm is float32's on a GPU
    assert result.loss == pytest.approx(float(run.closure().detach()), rel=1e-12)


@every_method
@pytest.mark.parametrize("call", [1, 2])  # at the local trial point, at the joined one
def test_a_closure_that_raises_leaves_the_iterate_bit_for_bit(method: str, call: int) -> None:
    run = Run(**METHODS[method], radius=0.05, global_step=False, local_steps=1)
    assert run.step().accepted
    before, run.calls = run.theta.clone(), []

    def spoil(calls: int, loss: Tensor) -> Tensor:
        if calls == call:
            raise ValueError("a bad sample")
        return loss

    run.spoil = spoil
    with pytest.raises(ValueError, match="a bad sample"):
        run.step()
    assert not torch.equal(run.calls[-1][1], before)
    assert torch.equal(run.theta, before)
    run.calls, run.spoil = [], lambda _call, loss: loss
    run.step()
    with_gradient, where = run.calls[0]
    assert with_gradient, "the iterate is evaluated anew"
    assert torch.equal(where, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_at_the_start_that_is_not_finite_is_an_error(bad: float) -> None:
    run = Run()
    run.spoil = lambda _call, loss: loss * bad
    with pytest.raises(FloatingPointError, match="loss at the start of iteration 1 is nan"):
        run.step()


@pytest.mark.parametrize("join", ["sum", "average", "adaptive"])
@every_method
@pytest.mark.parametrize("radius", [0.01, 1.0])
def test_an_iteration_moves_no_further_than_its_radius(
    method: str, join: str, radius: float
) -> None:
    run = Run(**METHODS[method], join=join, radius=radius, global_step=False)
    moved = []
    for _ in range(12):
        before, allowed = run.theta.clone(), run.apts.radius
        run.step()
        length = norm_of(run.theta - before, run.apts.options.norm)
        assert length <= allowed * (1 + 1e-5) + 1e-6 * float(before.abs().max())
        moved.append(length / allowed)
    assert max(moved) > (0.99 if radius < 0.1 else 0.1), "the radius is what limits it"


@every_method
@pytest.mark.parametrize("global_step", [True, False])
def test_full_batches_evaluate_no_iterate_twice(method: str, global_step: bool) -> None:
    run = Run(**METHODS[method], radius=0.1, global_step=global_step)
    run.step()
    for _ in range(8):
        run.calls.clear()
        theta = run.theta.clone()
        result = run.step()
        assert not any(torch.equal(point, theta) for _, point in run.calls)
        trials = (result.local_reduction > 0.0) + (not math.isnan(result.global_rho))
        assert len(run.calls) == result.local_tried + trials
        assert global_step or math.isnan(result.global_rho)
        gradients = sum(with_gradient for with_gradient, _ in run.calls)
        work = gradients + (len(run.calls) - gradients) / 3
        assert result.gradient_evaluations == pytest.approx(40 * work, rel=1e-12)
        if result.accepted or result.global_accepted:
            assert any(torch.equal(point, run.theta) for _, point in run.calls)


@every_method
def test_minibatches_evaluate_the_iterate_once_an_iteration(method: str) -> None:
    run = Run(**METHODS[method], radius=0.1)
    for _ in range(5):
        run.calls.clear()
        theta = run.theta.clone()
        result = run.step(same_batch=False)
        assert [torch.equal(point, theta) for _, point in run.calls].count(True) == 1
        assert torch.equal(run.calls[0][1], theta)
        assert len(run.calls) == 1 + result.local_tried + 2
        assert run.calls[0][0], "with its gradient"
        assert not run.calls[-1][0], "the last trial's gradient would serve nothing"


@every_method
@pytest.mark.parametrize("consistency", [True, False])
@pytest.mark.parametrize(
    ("same_batch", "global_step", "vectors", "scalars"),
    [(False, True, 3, 1), (True, True, 3, 0), (False, False, 1, 2), (True, False, 1, 1)],
)
def test_an_iteration_sends_the_messages_of_the_table_and_no_others(
    method: str, consistency: bool, same_batch: bool, global_step: bool, vectors: int, scalars: int
) -> None:
    """One process is consistent by itself: its rows are those of consistency off."""
    run = Run(**METHODS[method], radius=0.1, global_step=global_step, consistency=consistency)
    traffic = run.apts.comm.traffic
    assert traffic.bytes_broadcast >= 4 * run.apts.flat.n
    run.step(same_batch=same_batch)
    for _ in range(5):
        before = copy.copy(traffic)
        result = run.step(same_batch=same_batch)
        assert not math.isnan(result.rho)
        assert math.isnan(result.global_rho) == (not global_step)
        assert traffic.vector_allreduces - before.vector_allreduces == vectors
        assert traffic.scalar_allreduces - before.scalar_allreduces == scalars
        assert traffic.broadcasts == before.broadcasts


def test_the_first_radius_is_searched_with_scalar_messages_only() -> None:
    searched, given = Run(), Run(radius=0.1)
    start = searched.theta.clone()
    searched.step()
    given.step()
    ours, theirs = searched.apts.comm.traffic, given.apts.comm.traffic
    assert ours.vector_allreduces == theirs.vector_allreduces
    assert ours.scalar_allreduces > theirs.scalar_allreduces == 0
    assert not any(with_gradient for with_gradient, _ in searched.calls[1:3])
    along = searched.calls[2][1] - start  # the second point is twice as far as the first
    assert torch.allclose(along, 2 * (searched.calls[1][1] - start), atol=1e-6)


@every_method
@pytest.mark.parametrize("same_batch", [True, False])
def test_a_restored_optimizer_continues_bit_for_bit(method: str, same_batch: bool) -> None:
    run, restored = Run(**METHODS[method], window=3), Run(seed=0, **METHODS[method], window=3)
    for _ in range(4):
        run.step(same_batch=same_batch)
    restored.net.load_state_dict(run.net.state_dict())
    restored.apts.load_state_dict(copy.deepcopy(run.apts.state_dict()))
    fresh = Run(seed=0, **METHODS[method], window=3, radius=run.apts.radius)
    fresh.net.load_state_dict(run.net.state_dict())
    for _ in range(3):
        one, other = run.step(same_batch=same_batch), restored.step(same_batch=same_batch)
        fresh.step(same_batch=same_batch)
        assert one == other or math.isnan(one.rho)
        assert torch.equal(run.theta, restored.theta)
    assert not torch.equal(run.theta, fresh.theta), "the state matters"
    with pytest.raises(ValueError, match="the state has"):
        Deterministic([nn.Parameter(torch.zeros(3))]).load_state_dict(run.apts.state_dict())


@every_method
def test_two_runs_are_equal_bit_for_bit(method: str) -> None:
    one, other = Run(**METHODS[method]), Run(**METHODS[method])
    results = [(one.step(), other.step()) for _ in range(6)]
    assert torch.equal(one.theta, other.theta)
    assert all(repr(a) == repr(b) for a, b in results)
    assert not torch.equal(one.theta, Run(**METHODS[method]).theta)


# --- refusals ---


@pytest.mark.parametrize(
    "wrong",
    [
        {"local_solver": "newton"},
        {"norm": "1"},
        {"norm": "inf"},
        {"join": "max"},
        {"local_steps": 0},
        {"window": 0},
        {"radius": 0.0},
        {"radius": math.inf},
        {"memory": 11},
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Run(**wrong)

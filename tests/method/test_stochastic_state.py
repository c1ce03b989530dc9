"""The stochastic method's restart, repetition and refusals."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi.trust_region.radius import NoisyRule
from tests.method.driving import Stochastic
from tests.method.sampled import Run

torch.set_num_threads(1)


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
    smaller = Stochastic([nn.Parameter(torch.zeros(3))])
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


def test_the_message_is_kept_of_a_correction_that_was_accepted_and_else_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, calls = Run().warm(), list[str]()
    for name in ("keep", "drop"):
        monkeypatch.setattr(run.optimizer.messages, name, partial(calls.append, name))
    assert run.step().accepted
    assert calls == ["keep"]
    run.reject()
    assert calls == ["keep", "drop"]


# ---- between two minibatches of an iteration ----


def halfway(run: Run) -> Tensor:
    """Begin an iteration by taking two minibatches; the iterate that it began from."""
    before = run.theta.clone()
    for _ in range(2):
        assert run.optimizer.take(run.optimizer.minibatch(run.batches)) is None
    assert not torch.equal(run.theta, before), "a local step was taken"
    return before


def test_amid_an_iteration_the_average_is_there_and_the_iteration_continues() -> None:
    run, other = Run().warm(), Run().warm()
    for each in (run, other):
        halfway(each)
    before = run.theta.clone()
    with run.optimizer.averaged():
        assert torch.equal(run.theta, run.optimizer.average)
        assert not torch.equal(run.theta, before)
    assert torch.equal(run.theta, before)
    assert repr(run.step_on()) == repr(other.step_on())


def test_a_state_saved_amid_an_iteration_begins_it_anew() -> None:
    run = Run().warm()
    before, whole = run.theta.clone(), run.optimizer.state_dict()
    halfway(run)
    state = run.optimizer.state_dict()
    assert torch.equal(run.optimizer.iterate_vector, before)
    local = state["subdomains"]["0"]["local"]
    assert local["learned"] > whole["subdomains"]["0"]["local"]["learned"]
    assert not state["known"]
    for name in ("velocity", "average", "radius", "ratio", "losses", "iterations"):
        assert repr(state[name]) == repr(whole[name])


def test_between_two_minibatches_the_clock_is_in_no_phase() -> None:
    run, labels = Run().warm(), ["local steps"] * 3  # the first step, and one on each minibatch
    run.optimizer.comm.clock.trace()
    halfway(run)
    spans = run.optimizer.comm.clock.spans or []
    assert [span.label for span in spans] == labels


def test_an_iteration_that_is_left_begins_again_from_its_iterate() -> None:
    run = Run().warm()
    before = halfway(run)

    def fail() -> NoReturn:
        raise ValueError("no more minibatches")

    with pytest.raises(ValueError, match="no more"):
        run.optimizer.iterate(fail)
    assert torch.equal(run.theta, before)
    assert not run.optimizer.now.known
    assert not run.optimizer.in_progress


def test_after_a_minibatch_that_raises_take_begins_anew() -> None:
    run = Run().warm()
    before = halfway(run)

    def fail(_with_gradient: bool) -> NoReturn:
        raise ValueError("a bad sample")

    with pytest.raises(ValueError, match="a bad sample"):
        run.optimizer.take((fail, 10))
    assert torch.equal(run.theta, before)
    halfway(run)  # its first minibatch is not lost


def test_a_state_taken_up_amid_an_iteration_ends_it() -> None:
    run = Run().warm()
    state = copy.deepcopy(run.optimizer.state_dict())
    halfway(run)
    run.optimizer.load_state_dict(state)
    assert repr(run.optimizer.state_dict()) == repr(state)


def test_weights_loaded_during_an_iteration_stay_when_the_state_follows() -> None:
    saved, run = Run().warm(), Run(seed=1).warm()
    halfway(run)
    run.net.load_state_dict(saved.net.state_dict())
    run.optimizer.load_state_dict(saved.optimizer.state_dict())
    assert torch.equal(run.theta, saved.theta)


def test_a_first_step_that_raises_before_a_minibatch_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run().warm()
    before, solver = run.theta.clone(), run.optimizer._subdomains[0].solver

    def fail(_loss: float) -> NoReturn:
        assert not torch.equal(run.theta, before), "the step was taken"
        raise MemoryError

    with monkeypatch.context() as planted:
        planted.setattr(solver, "_note", fail)
        with pytest.raises(MemoryError):
            run.step()
    assert torch.equal(run.theta, before)
    assert not run.optimizer.now.known
    assert not run.optimizer.in_progress
    assert math.isfinite(run.step().loss)


def test_a_closure_that_raises_at_the_trial_point_leaves_no_momentum() -> None:
    run = Run().warm()
    before, control = run.theta.clone(), run.control

    def spoil(draw: int, grad: bool, loss: Tensor) -> Tensor:
        if draw == control and grad:
            raise ValueError("a bad sample")
        return loss

    assert run.optimizer._velocity.any()
    run.spoil = spoil
    with pytest.raises(ValueError, match="a bad sample"):
        run.step()
    assert torch.equal(run.theta, before)
    state = run.optimizer.state_dict()
    assert not state["velocity"].any()
    assert state["ratio"] == [0.0, 0.0]
    assert not state["known"]


class TwoSubdomains(Run):
    """Two subdomains of a rank, each with minibatches of its own."""

    def __init__(self) -> None:
        super().__init__(subdomains=2)
        self.draws_of = [partial(self.draw, np.random.default_rng(k)) for k in range(2)]

    def draw(self, rng: np.random.Generator) -> tuple[Callable[[], Tensor], int]:
        index = rng.choice(len(self.x), size=10, replace=False)
        return lambda: cross_entropy(self.net(self.x[index]), self.y[index]), len(index)


def test_taking_the_minibatches_of_two_subdomains_one_by_one_is_a_step() -> None:
    stepped, taken = TwoSubdomains(), TwoSubdomains()
    optimizer = taken.optimizer
    for _ in range(4):
        expected, done = stepped.optimizer.step(*stepped.draws_of), None
        while done is None:
            done = optimizer.take(optimizer.minibatch(taken.draws_of[optimizer.turn]))
        assert optimizer.turn == 0
        assert repr(done) == repr(expected)
        assert torch.equal(taken.theta, stepped.theta)

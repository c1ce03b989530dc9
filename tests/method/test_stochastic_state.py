"""The stochastic method's restart, repetition and refusals."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import pytest
import torch
from torch import nn

from apts_mpi.method.stochastic import StochasticAPTS
from apts_mpi.trust_region.radius import NoisyRule
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

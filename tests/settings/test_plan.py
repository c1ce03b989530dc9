"""Minibatches and local steps that follow from the number of subdomains and samples."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import FEWEST, MINIBATCHES, OUTER_SAMPLES, SHORT, completed, plan

torch.set_num_threads(1)


repeatable = settings(max_examples=100, deadline=None, derandomize=True)


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
    assert plan(64, 60_000, outer=21_000) == (16, 21)  # twenty small steps before ten larger ones

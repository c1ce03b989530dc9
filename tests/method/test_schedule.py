"""Schedules of learning rates, against torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.optim import SGD, lr_scheduler

from apts_mpi.method.schedule import Schedule

STEPS = 40

Make = Callable[[SGD], lr_scheduler.LRScheduler]


def of_torch(*parts: tuple[int, Make]) -> list[float]:
    """Rates of so many steps of each schedule, one after another."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedulers = [make(optimizer) for _, make in parts]
    ends = [sum(steps for steps, _ in parts[: i + 1]) for i in range(len(parts) - 1)]
    scheduler = lr_scheduler.SequentialLR(optimizer, schedulers, milestones=ends)
    rates = []
    for _ in range(STEPS):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def rising(steps: int) -> tuple[int, Make]:
    return steps, lambda opt: lr_scheduler.LambdaLR(opt, lambda k: (k + 1) / steps)


def rates(shape: str, warmup: float, *, together: int = 1) -> list[float]:
    """Of our schedule; so many steps in an iteration."""
    schedule = Schedule(shape, warmup, 1 / STEPS)
    return [schedule.factor((k - k % together) / STEPS, k % together) for k in range(STEPS)]


@pytest.mark.parametrize("together", [1, 5, 8])
def test_a_warm_up_and_a_cosine(together: int) -> None:
    cosine = partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS - 4)
    wanted = of_torch(rising(4), (STEPS - 4, cosine))
    assert rates("cosine", 0.1, together=together) == pytest.approx(wanted)


def test_a_cosine_alone() -> None:
    wanted = [(1 + math.cos(math.pi * k / STEPS)) / 2 for k in range(STEPS)]
    assert rates("cosine", 0.0) == pytest.approx(wanted)


@pytest.mark.parametrize("together", [1, 5])
def test_a_warm_up_a_plateau_and_a_linear_end(together: int) -> None:
    level = partial(lr_scheduler.ConstantLR, factor=1.0)
    down = partial(lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=8)
    wanted = of_torch(rising(4), (28, level), (8, down))
    assert rates("wsd", 0.1, together=together) == pytest.approx(wanted)


def test_a_warm_up_alone() -> None:
    assert rates("constant", 0.5)[:21] == pytest.approx([*((k + 1) / 20 for k in range(20)), 1.0])


def test_a_constant_rate_is_the_rate_itself() -> None:
    assert set(rates("constant", 0.0)) == {1.0}


@pytest.mark.parametrize("shape", ["cosine", "wsd"])
def test_more_work_than_there_is_has_a_rate_of_zero(shape: str) -> None:
    assert Schedule(shape, 0.1, 0.01).factor(0.99, 7) == pytest.approx(0.0)


def test_the_first_step_of_a_warm_up_is_a_step() -> None:
    assert Schedule("cosine", 0.25, 0.01).factor(0.0) == pytest.approx(0.04)

"""What bad luck does to the stochastic family: ``python programs.py luck.NAME``.

Numbers that are not finite, batches without samples, and ranks that are unlike the others. Each
function asserts on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apts_mpi.comm.communicator import Comm
from tests.devices import DEVICE
from tests.method.problem import data
from tests.method.stochastic_rank import Rank, Spoil, is_last, no_spoiling, spoiled_trial, uneven


def lone_bad_step() -> None:
    """A local loss or gradient that is not finite on one rank: that one goes back, all go on."""
    comm = Comm()

    def overflow(draw: int, _grad: bool, loss: Tensor) -> Tensor:
        return loss * math.inf if draw == 2 and is_last(comm) else loss

    def steep(draw: int, _grad: bool, loss: Tensor) -> Tensor:
        bad = draw == 1 and is_last(comm)
        return loss + (torch.sqrt(loss - loss.detach()) if bad else 0.0)  # slope infinite at 0

    # Three steps are taken back and one is not taken; or that one alone.
    for spoil, missing in ((overflow, 4), (steep, 1)):
        rank = Rank(comm, uneven(comm), local_steps=5).warm()
        learned = rank.optimizer.state_dict()["subdomains"]["0"]["local"]["learned"]
        theta = rank.theta.clone()
        rank.spoil = spoil
        result = rank.step()
        assert result.local_accepted == comm.size * rank.steps - missing, result
        went_back = [torch.equal(call[2], theta) for call in rank.calls if call[0] == 3]
        assert went_back == [spoil is overflow and is_last(comm)]
        after = rank.optimizer.state_dict()["subdomains"]["0"]["local"]["learned"]
        assert after - learned == rank.steps - is_last(comm)
        rank.spoil = no_spoiling
        rank.warm()
        assert not torch.equal(rank.theta, theta)


def all_steps_taken_back() -> None:
    """Where nothing has moved on any rank nothing is accepted, and the radius shrinks."""
    comm = Comm()
    rank = Rank(comm, uneven(comm)).warm()
    theta, average = rank.theta.clone(), rank.optimizer.average.clone()
    control = rank.control
    rank.spoil = lambda draw, _grad, loss: loss * math.inf if draw < control else loss
    for fresh in (0, 1):
        radius = rank.optimizer.radius
        control = rank.control
        result = rank.step()
        assert not result.accepted
        # What the last control batch has left is one step; of a spoilt fresh one there is none.
        assert (result.local_accepted, result.local_tried) == (0, 0 if fresh else comm.size)
        assert result.radius < radius
        assert torch.equal(rank.theta, theta)
        assert torch.equal(rank.optimizer.average, average)
    rank.spoil = no_spoiling
    rank.warm()
    assert not torch.equal(rank.theta, theta)


def lone_bad_iterate() -> None:
    """A loss at theta_k that is not finite on one rank is the same error on all."""
    comm = Comm()
    for count in (0, 2):
        rank = Rank(comm, uneven(comm))
        if count:
            rank.warm(count)
        theta, control = rank.theta.clone(), rank.control
        first = count == 0

        def spoil(
            draw: int, grad: bool, loss: Tensor, first: bool = first, control: int = control
        ) -> Tensor:
            bad = draw == 0 and grad if first else draw == control and not grad
            return loss * math.nan if bad and is_last(comm) else loss

        rank.spoil = spoil
        line = "nothing was raised"
        try:
            rank.step()
        except FloatingPointError as error:
            line = str(error)
        told = f"the loss at the start of iteration {rank.optimizer.iterations + 1} is nan"
        assert line.startswith(told), line
        comm.require_same("an error", [line])
        assert torch.equal(rank.theta, theta)


def lone_bad_trial() -> None:
    """A loss or gradient at the trial point that is not finite on one rank is rejected by all."""
    comm = Comm()
    ways: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda loss: loss * math.nan,
        lambda loss: loss + math.inf,  # its gradient is as it was
        lambda loss: loss + torch.sqrt(loss - loss.detach()),
    )
    for way in ways:
        rank = Rank(comm, uneven(comm)).warm()
        theta, average = rank.theta.clone(), rank.optimizer.average.clone()
        radius = rank.optimizer.radius
        if is_last(comm):
            rank.spoil = spoiled_trial(rank, way)
        result = rank.step()
        assert not result.accepted
        assert not torch.equal(rank.calls[-1][2], theta), "nothing was tried"
        assert torch.equal(rank.theta, theta)
        assert torch.equal(rank.optimizer.average, average)
        assert not rank.optimizer.state_dict()["velocity"].any()
        assert 0.1 * radius <= result.radius <= 0.5 * radius
        rank.spoil = no_spoiling
        rank.warm()
        assert not torch.equal(rank.theta, theta)


def rank_without_samples() -> None:
    """A rank whose minibatches are empty, always or now and then, takes part; all empty is told."""
    comm = Comm()
    nothing = torch.zeros(0, dtype=torch.int64)
    whole = torch.arange(len(data()[0]))

    def never(_i: int) -> bool:
        return comm.rank != 0

    def at_times(i: int) -> bool:
        return (i + comm.rank) % 3 != 0

    for has_samples in (never, at_times):

        def indices(i: int, has_samples: Callable[[int], bool] = has_samples) -> Tensor:
            return uneven(comm)(i) if has_samples(i) else nothing

        rank = Rank(comm, indices)
        with torch.no_grad():
            first = float(F.cross_entropy(rank.module(rank.x[whole]), rank.y[whole]))
        for _ in range(8):
            rank.step()
        with torch.no_grad():
            last = float(F.cross_entropy(rank.module(rank.x[whole]), rank.y[whole]))
        assert last < 0.8 * first, (first, last)
        learned = rank.optimizer.state_dict()["subdomains"]["0"]["local"]["learned"]
        assert (learned == 0) == (has_samples is never and comm.rank == 0)

    for count in (0, 2):
        rank = Rank(comm, uneven(comm))
        if count:
            rank.warm(count)
        rank.indices = lambda _i: nothing
        try:
            rank.optimizer.step(rank.batches)
        except ValueError as error:
            assert "no samples" in str(error)
        else:
            raise AssertionError("no samples at all were taken")


# ---- ranks that are unlike -----------------------------------------------------------------------


def problem(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes of 6 features, about equally many of each, without noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, 6)).astype(np.float32)
    y = np.digitize(x[:, 0] + x[:, 1] + x[:, 2] * 0.5, [-0.65, 0.65])
    return torch.as_tensor(x), torch.as_tensor(y)


def accuracy(rank: Rank) -> float:
    """On clean test data, of the average."""
    x, y = problem(1000, seed=10**6)
    with rank.optimizer.averaged(), torch.no_grad():
        return float((rank.module(x).argmax(1) == y).float().mean())


def trained_to(spoil: Spoil, samples: tuple[Tensor, Tensor], iterations: int = 12) -> float:
    """Accuracy after some iterations over minibatches of 32 of these samples."""
    comm = Comm()
    rng = np.random.default_rng(comm.rank)
    rank = Rank(comm, lambda _i: torch.as_tensor(rng.integers(0, 400, 32)), samples)
    rank.optimizer._subdomains[0].solver.steps = rank.steps = 8
    rank.spoil = spoil
    chance = accuracy(rank)
    assert chance < 0.6
    taken = [rank.step().accepted for _ in range(iterations)]
    assert sum(taken) > iterations // 2
    return accuracy(rank)


def mislabelled_rank() -> None:
    """One rank of the four has random labels: the others' truth prevails."""
    comm = Comm()
    x, y = problem(400, seed=comm.rank)
    if is_last(comm):
        y = torch.randint(0, 3, (400,), generator=torch.Generator(DEVICE).manual_seed(0))
    right = trained_to(no_spoiling, (x, y))
    assert right > 0.75, right


def unlike_losses() -> None:
    """One rank's loss is a thousand times as large, or nothing it could learn from."""
    comm = Comm()

    def loud(_draw: int, _grad: bool, loss: Tensor) -> Tensor:
        return 1000.0 * loss if is_last(comm) else loss

    def flat(_draw: int, _grad: bool, loss: Tensor) -> Tensor:
        return 0.0 * loss + 5.0 if is_last(comm) else loss

    for spoil in (loud, flat):
        right = trained_to(spoil, problem(400, seed=comm.rank))
        assert right > 0.8, (spoil, right)

"""Random numbers of a forward pass: one minibatch sees the same ones, another sees others."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi.method.randomness import Repeated
from apts_mpi.networks.seeding import Generators
from tests.method.driving import Deterministic, Stochastic

CPU = torch.device("cpu")


class Inner(nn.Module):
    """A part of it that has one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.Generator()


class Holding(nn.Module):
    """A module with generators of its own, as noise layers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.b = np.random.default_rng(1)
        self.c = random.Random(2)
        self.d = np.random.RandomState(3)
        self.e = np.random.Generator(np.random.SFC64(4))
        self.several: list[Any] = [torch.Generator(), {"a": random.Random(5)}]

    def numbers(self) -> list[float]:
        return [
            float(torch.rand((), generator=self.inner.a)),
            *(self.b.random(), self.c.random(), self.d.random_sample(), self.e.random()),
            *(self.d.randn(), self.c.gauss(0.0, 1.0)),  # which keep a number for the next call
            float(torch.rand((), generator=self.several[0])),
            self.several[1]["a"].random(),
        ]


def numbers(module: Holding) -> list[float]:
    of_all = [
        float(torch.rand(())),
        random.random(),
        float(np.random.rand()),
        random.gauss(0.0, 1.0),
    ]
    return [*of_all, float(np.random.randn()), *module.numbers()]


keys = st.lists(st.integers(0, 2**40), max_size=4).map(tuple)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(key=keys, other=keys)
def test_a_key_decides_all_numbers(key: tuple[int, ...], other: tuple[int, ...]) -> None:
    module = Holding()
    generators = Generators(CPU, module)
    generators.seed(key)
    first = numbers(module)
    generators.seed(other)
    second = numbers(module)
    generators.seed(key)
    assert numbers(module) == first
    if key != other:
        assert not set(first) & set(second)


def test_a_state_brings_all_numbers_back() -> None:
    module = Holding()
    generators = Generators(CPU, module)
    numbers(module)
    state = generators.state()
    first = numbers(module)
    numbers(module)
    generators.restore(state)
    assert numbers(module) == first


SOURCES: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand(())),
    "numpy": lambda: float(np.random.rand()),
    "random": random.random,
}


@pytest.mark.parametrize("source", SOURCES)
def test_later_evaluations_repeat_the_first_and_disturb_nobody(source: str) -> None:
    draw = SOURCES[source]
    generators = Generators(CPU)
    generators.seed((1,))
    expected = [draw() for _ in range(3)]
    generators.seed((1,))
    one = Repeated(lambda _: draw(), generators, repeats=True)
    first = float(one(True))
    between = draw()
    assert float(one(False)) == first
    assert [first, between, draw()] == expected, "as if it had been evaluated once"
    other = Repeated(lambda _: draw(), generators, repeats=True)
    assert float(other(False)) != first
    assert one.draws
    assert other.draws


def test_a_loss_that_draws_nothing_is_known_as_such() -> None:
    quiet = Repeated(lambda _: 1.0, Generators(CPU), repeats=True)
    assert float(quiet(True)) == float(quiet(False)) == 1.0
    assert not quiet.draws


# ---- the classes ---------------------------------------------------------------------------------


class Seen(nn.Module):
    """Draws a number at every call, notes it, and lets it shift the outputs."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.draw, self.seen = draw, list[float]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.draw())
        return self.linear(x) * (0.5 + self.seen[-1])


def looped(optimizer: Stochastic, model: Seen, iterations: int) -> dict[int, list[float]]:
    """What each closure saw, over some iterations."""
    x, y = torch.randn(40, 3), torch.randint(2, (40,))
    seen = dict[int, list[float]]()

    def minibatch() -> tuple[Callable[[], Tensor], int]:
        number = len(seen)
        seen[number] = []
        index = torch.randint(40, (8,))

        def closure() -> Tensor:
            loss = cross_entropy(model(x[index]), y[index])
            seen[number].append(model.seen[-1])
            return loss

        return closure, 8

    for _ in range(iterations):
        optimizer.step(minibatch)
    return seen


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_a_minibatch_sees_one_mask_and_others_see_others(source: str, ahead: bool) -> None:
    torch.manual_seed(0)
    model = Seen(SOURCES[source])
    optimizer = Stochastic(model.parameters(), local_steps=3, ahead=ahead)
    seen = looped(optimizer, model, 4)
    assert max(map(len, seen.values())) > 2, "some are evaluated several times"
    assert all(len(set(values)) == 1 for values in seen.values())
    assert len({values[0] for values in seen.values()}) == len(seen)


@pytest.mark.parametrize("same_batch", [False, True])
def test_a_whole_batch_sees_one_mask_an_iteration(same_batch: bool) -> None:
    torch.manual_seed(0)
    model = Seen(SOURCES["torch"])
    apts = Deterministic(model.parameters())
    x, y = torch.randn(40, 3), torch.randint(2, (40,))
    masks = []
    for _ in range(4):
        model.seen.clear()
        result = apts.step(lambda: cross_entropy(model(x), y), samples=40, same_batch=same_batch)
        assert len(model.seen) > 2
        assert len(set(model.seen)) == 1
        masks.append(model.seen[0])
        with torch.no_grad():
            scale = 0.5 + masks[-1]
            here = float(cross_entropy(model.linear(x) * scale, y))
        assert result.loss == pytest.approx(here, rel=1e-6), "of this iteration's mask"
    assert len(set(masks)) == len(masks)


def test_dropout_leaves_the_reduction_ratio_as_good_as_without() -> None:
    def trained(p: float) -> tuple[float, list[float]]:
        torch.manual_seed(0)
        x = torch.randn(400, 10)
        y = (x[:, 0] + x[:, 1] > 0).long()
        net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 2))
        optimizer = Stochastic(net.parameters(), local_steps=5, local_solver="scaled")

        def minibatch() -> tuple[Callable[[], Tensor], int]:
            index = torch.randint(400, (50,))
            return lambda: cross_entropy(net(x[index]), y[index]), 50

        ratios = [optimizer.step(minibatch).rho for _ in range(20)]
        net.eval()
        with optimizer.averaged(), torch.no_grad():
            return float((net(x).argmax(1) == y).float().mean()), ratios

    accuracy, ratios = trained(0.5)
    assert accuracy > 0.95
    assert min(ratios[:4]) > 0.6, "the first, long strides keep what they promise"

"""Random numbers of a forward pass: one minibatch sees the same ones, another sees others."""

from __future__ import annotations

import copy
import json
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi import APTS, StochasticAPTS
from apts_mpi.method.randomness import Generators, Repeated

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


@settings(max_examples=100, deadline=None, derandomize=True)
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


# ---- the classes -------------------------------------------------------------------------------


class Seen(nn.Module):
    """Draws a number at every call, notes it, and lets it shift the outputs."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.draw, self.seen = draw, list[float]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.draw())
        return self.linear(x) * (0.5 + self.seen[-1])


def looped(optimizer: StochasticAPTS, model: Seen, iterations: int) -> dict[int, list[float]]:
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
    optimizer = StochasticAPTS(model.parameters(), local_steps=3, ahead=ahead)
    seen = looped(optimizer, model, 4)
    assert max(map(len, seen.values())) > 2, "some are evaluated several times"
    assert all(len(set(values)) == 1 for values in seen.values())
    assert len({values[0] for values in seen.values()}) == len(seen)


@pytest.mark.parametrize("same_batch", [False, True])
def test_a_whole_batch_sees_one_mask_an_iteration(same_batch: bool) -> None:
    torch.manual_seed(0)
    model = Seen(SOURCES["torch"])
    apts = APTS(model.parameters())
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
        optimizer = StochasticAPTS(net.parameters(), local_steps=5)

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


# ---- where the first radius cannot be found ----------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, logger="apts_mpi"):
        yield caplog


def test_a_loss_that_cannot_be_repeated_is_told_and_trains(
    heard: pytest.LogCaptureFixture,
) -> None:
    own = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    x = torch.randn(400, 10)
    y = (x[:, 0] + x[:, 1] > 0).long()
    net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = StochasticAPTS(net.parameters(), local_steps=5)

    def minibatch() -> tuple[Callable[[], Tensor], int]:
        index = torch.randint(400, (50,))

        def closure() -> Tensor:
            noise = torch.randn(50, 10, generator=own)
            return cross_entropy(net(x[index] + 0.3 * noise), y[index])

        return closure, 50

    for _ in range(40):
        optimizer.step(minibatch)
    told = [line for line in lines(heard) if "at the same parameters" in line]
    assert len(told) == 1
    assert "generator of its own" in told[0]
    with torch.no_grad():
        assert float((net(x).argmax(1) == y).float().mean()) > 0.9


def test_a_first_radius_that_was_not_found_does_not_bound_the_run(
    heard: pytest.LogCaptureFixture,
) -> None:
    """A kink at the start, so that the loss rises at first; further off there is a long slope."""
    x = nn.Parameter(torch.zeros(4))
    optimizer = StochasticAPTS([x], local_steps=5)
    calls = 0

    def minibatch() -> tuple[Callable[[], Tensor], int]:
        nonlocal calls
        calls += 1
        first = calls == 1  # whose gradient points uphill

        def closure() -> Tensor:
            total = x.double().sum()
            return 10.0 + total - 2.0 * total.detach() if first else 10.0 - total

        return closure, 1

    radii = [optimizer.step(minibatch).radius for _ in range(20)]
    (told,) = lines(heard)
    assert "no first radius was found" in told
    assert radii[0] < 5e-6
    assert radii[-1] > 1e-2


def test_a_constant_loss_is_told(heard: pytest.LogCaptureFixture) -> None:
    net = nn.Linear(3, 2)
    stale = copy.deepcopy(net)
    x, y = torch.randn(8, 3), torch.randint(2, (8,))
    optimizer = StochasticAPTS(net.parameters(), local_steps=3)

    def closure() -> Tensor:  # of a copy; the gradient is as it should be
        moved = cross_entropy(net(x), y)
        return cross_entropy(stale(x), y).detach() + (moved - moved.detach())

    for _ in range(12):
        optimizer.step(lambda: (closure, 8))
    told = lines(heard)
    assert sum("however the parameters move" in line for line in told) == 1
    assert sum("did not change at all in 5 accepted steps" in line for line in told) == 1


# ---- autocast ----------------------------------------------------------------------------------


def under_autocast(where: str) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(400, 20)
    y = (x[:, :2].sum(1) > 0).long()
    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = StochasticAPTS(net.parameters(), local_steps=5)
    half = torch.autocast("cpu", torch.bfloat16, enabled=where != "around")

    def minibatch() -> tuple[Callable[[], Tensor], int]:
        index = torch.randint(400, (64,))

        def closure() -> Tensor:
            with half if where != "around" else nullcontext():
                return cross_entropy(net(x[index]), y[index])

        return closure, 64

    with torch.autocast("cpu", torch.bfloat16, enabled=where != "inside"):
        for _ in range(10):
            result = optimizer.step(minibatch)
        seen = [net(x).detach()]  # with gradients on, so that autocast keeps its casts
        with optimizer.averaged():
            seen.append(net(x).detach())
        seen.append(net(x).detach())
    with torch.autocast("cpu", torch.bfloat16, enabled=where != "inside", cache_enabled=False):
        fresh = [net(x).detach()]
        with optimizer.averaged():
            fresh.append(net(x).detach())
    assert all(map(torch.equal, seen, [*fresh, fresh[0]])), "casts of the parameters as they are"
    accuracy = float((seen[0].argmax(1) == y).float().mean())
    return {"theta": optimizer.flat.vector.clone(), "rho": result.rho, "accuracy": accuracy}


def test_autocast_around_the_loop_is_autocast_in_the_closure() -> None:
    inside, around, both = map(under_autocast, ("inside", "around", "both"))
    assert torch.equal(inside["theta"], around["theta"])
    assert torch.equal(inside["theta"], both["theta"])
    assert around["accuracy"] > 0.9


def test_the_algebra_is_in_float32_under_autocast() -> None:
    """L-SR1's products of matrices and vectors would be rounded to bfloat16."""

    def run(*, autocast: bool) -> Tensor:
        torch.manual_seed(0)
        x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(2, (40,))
        weight = nn.Parameter(torch.randn(2, 6))
        apts = APTS([weight])

        def closure() -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return cross_entropy(x @ weight.double().T, y)

        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for _ in range(6):
                apts.step(closure, samples=40, same_batch=True)
        return weight.detach().clone()

    assert torch.equal(run(autocast=True), run(autocast=False))


# ---- the program -------------------------------------------------------------------------------

NETS = """
import math, random
import numpy as np, torch
from torch import nn

def mlp(task, layer):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(task.sample_shape), 64), nn.ReLU(),
                         layer, nn.Linear(64, task.outputs))

class Noise(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        if kind == "own":
            self.drawing = torch.Generator()
        if kind == "own-numpy":
            self.drawing = np.random.default_rng()
        if kind == "legacy":
            self.drawing = np.random.RandomState(3)
        if kind == "hidden":
            generator = torch.Generator()
            self.drawing = lambda: generator
        self.calls = 0
    def forward(self, x):
        if not self.training:
            return x
        if self.kind == "numpy":
            return x + torch.from_numpy(np.random.randn(*x.shape).astype("f4"))
        if self.kind == "random":
            return x * 2.0 if random.random() < 0.5 else x * 0.0
        if self.kind == "own-numpy":
            return x + torch.from_numpy(self.drawing.standard_normal(x.shape, dtype="f4"))
        if self.kind == "legacy":
            return x * (1.0 + 0.2 * self.drawing.randn())
        if self.kind == "late":
            self.calls += 1
            return nn.functional.dropout(x, 0.5) if self.calls > 40 else x
        generator = self.drawing() if self.kind == "hidden" else self.drawing
        return x + torch.randn(x.shape, generator=generator)

def dropout(task):
    return mlp(task, nn.Dropout(0.5))

def numpy_noise(task):
    return mlp(task, Noise("numpy"))

def depth(task):
    return mlp(task, Noise("random"))

def own(task):
    return mlp(task, Noise("own"))

def legacy(task):
    return mlp(task, Noise("legacy"))

def hidden(task):
    return mlp(task, Noise("hidden"))

def late(task):
    return mlp(task, Noise("late"))

class Loss(nn.Module):
    def __init__(self, trained):
        super().__init__()
        if trained:
            self.t = nn.Parameter(torch.ones(()))
        self.noise = Noise("own")
    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(self.noise(outputs), targets, reduction="none")

def loss(task):
    return mlp(task, nn.Identity()), Loss(False)

def trained_loss(task):
    return mlp(task, nn.Identity()), Loss(True)

def always(task):
    class Always(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.1)
    return mlp(task, Always())

def own_numpy(task):
    return mlp(task, Noise("own-numpy"))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "noisy.py").write_text(NETS)
    return tmp_path


def rows(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text()
    return [
        {name: value for name, value in json.loads(row).items() if "seconds" not in name}
        for row in text.splitlines()
    ]


@pytest.mark.parametrize(
    "network", ["dropout", "numpy_noise", "depth", "own", "own_numpy", "legacy", "loss"]
)
def test_the_program_trains_networks_that_draw_numbers(
    network: str, folder: Path, alone: Callable[..., Any], cache: Path
) -> None:
    common = ["--network", f"noisy:{network}", "--epochs", "100", "--threads", "1"]
    run = alone("apts_mpi", [*common, "--out", "run"], folder, cache, 120.0)
    assert run.status == 0, run.err
    assert "warning" not in run.err
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.9
    assert summary["accepted"] > 2 * summary["rejected"]


def test_a_run_with_dropout_resumes_bit_for_bit(
    folder: Path, alone: Callable[..., Any], cache: Path
) -> None:
    common = ["--network", "noisy:numpy_noise", "--threads", "1"]
    for name, more in (("whole", 8), ("cut", 5)):
        given = [*common, "--iterations", str(more), "--out", name, "--checkpoint-every", "100"]
        assert alone("apts_mpi", given, folder, cache, 120.0).status == 0
    again = ["--resume", "cut", "--network", "noisy:numpy_noise", "--iterations", "8"]
    run = alone("apts_mpi", again, folder, cache, 120.0)
    assert run.status == 0, run.err
    assert rows(folder / "whole") == rows(folder / "cut")


@pytest.mark.parametrize("network", ["dropout", "late"])
def test_a_whole_shard_with_dropout_is_another_batch_each_time(
    network: str, folder: Path, alone: Callable[..., Any], cache: Path
) -> None:
    """What is known of the loss under one mask says nothing of it under the next."""
    common = ["--local-solver", "first-order", "--iterations", "16", "--threads", "1"]
    given = [*common, "--network", f"noisy:{network}", "--out", "run"]
    run = alone("apts_mpi", given, folder, cache, 120.0)
    assert run.status == 0, run.err
    found = rows(folder / "run")
    assert sum(row["accepted"] for row in found) >= 12
    assert found[-1]["loss"] < 0.7 * found[0]["loss"]


@pytest.mark.parametrize(
    ("network", "status", "line"),
    [
        ("hidden", 0, "it draws random numbers that cannot be repeated"),
        ("always", 0, "draws random numbers in evaluation, too"),
        ("trained_loss", 2, "its loss has a parameter 't', which nothing trains"),
    ],
)
def test_what_cannot_be_repeated_is_told_before_training(
    network: str, status: int, line: str, folder: Path, alone: Callable[..., Any], cache: Path
) -> None:
    given = ["--network", f"noisy:{network}", "--iterations", "1", "--threads", "1"]
    run = alone("apts_mpi", [*given, "--out", "run"], folder, cache, 120.0)
    assert run.status == status, run.err
    assert line in run.err + run.out

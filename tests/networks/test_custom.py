"""The user's own networks."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apts_mpi.errors import InputError
from apts_mpi.networks import named
from apts_mpi.settings.config import TrainConfig
from tests.networks.test_networks import IMAGES, TEXT

OWN = """
from torch import nn

def network(task):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, task.outputs))

def with_loss(task):
    return network(task), lambda outputs, targets: outputs.square().sum(dim=1)

def wrong(task):
    return 3

def failing(task):
    raise KeyError("no such thing")

def one_too_many(task):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, task.outputs + 1))

def one_for_each_sample(task):
    module = nn.Sequential(nn.Flatten(), nn.Linear(768, 1), nn.Flatten(0))
    return module, lambda outputs, targets: (outputs - targets).square()

def too_narrow(task):
    return nn.Sequential(nn.Flatten(), nn.Linear(767, task.outputs))

def frozen(task):
    module = network(task)
    module.append(nn.BatchNorm1d(task.outputs).eval())
    return module

def leaving(task):
    raise SystemExit("usage: nothing")

constant = 5
"""


def test_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_of_a_user.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module, loss = named.build("own_of_a_user:network", IMAGES, {}, seed=0)
    assert loss is None
    again, loss = named.build("own_of_a_user:with_loss", IMAGES, {}, seed=0)
    assert loss is not None
    assert loss.answers
    _, loss = named.build("own_of_a_user:one_for_each_sample", IMAGES, {}, seed=0)
    assert loss is not None
    assert not loss.answers
    kept, _ = named.build("own_of_a_user:frozen", IMAGES, {}, seed=0)
    assert [part.training for part in kept.modules()] == [True, True, True, False]
    for p, q in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
    for name, told in (
        ("nowhere_to_be_found:network", "cannot be imported"),
        ("own_of_a_user:nothing", "no function nothing"),
        ("own_of_a_user:constant", "no function constant"),
        ("own_of_a_user:wrong", "gave int"),
        ("own_of_a_user:failing", "no such thing"),
        ("own_of_a_user:too_narrow", "fails on 2 samples of shape .* cannot be multiplied"),
        ("own_of_a_user:one_too_many", r"gave \(2, 8\) for 2 samples .* takes \(2, 7\)"),
        ("own_of_a_user:leaving", "SystemExit: usage"),
        ("own_of_a_user.py:network", "name the module, not its file: own_of_a_user:network"),
    ):
        with pytest.raises(InputError, match=told):
            named.build(name, IMAGES, {}, seed=0)


ZOO = """
CALLS = []

def by_weights(*, weights=None, progress=True, **others):
    CALLS.append(weights)

def by_flag(pretrained=False, progress=True):
    CALLS.append(pretrained)

def by_name(model_name: str, pretrained: bool = False, **others):
    CALLS.append(model_name)

def by_text(which: "str | None" = None):
    CALLS.append(which)

def by_several(first, second):
    CALLS.append(first)

class Built:
    def __init__(self, num_classes=1000):
        CALLS.append(num_classes)

def by_position(t):
    CALLS.append(t)

def by_any(*tasks, **others):
    CALLS.append(tasks)
"""


def test_a_function_that_takes_no_task_is_never_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("torchvision", "timm"):  # none of them is even imported
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "zoo_of_others.py").write_text(ZOO, encoding="utf-8")
    own = "from zoo_of_others import by_flag\nfrom torch.nn import Identity as network\n"
    (tmp_path / "zoo_of_ones_own.py").write_text(own, encoding="utf-8")
    packages = tmp_path / "lib/site-packages"
    packages.mkdir(parents=True)
    installed = "def network(t):\n    raise SystemExit('called')\n"
    (packages / "zoo_installed.py").write_text(installed, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(packages)
    functions = (
        *("by_weights", "by_flag", "by_name", "by_text", "by_several", "Built"),
        *("by_position", "by_any"),
    )
    for name in (
        *("torchvision.models:resnet18", "timm.models:create", "transformers:AutoModel"),
        *("torch.hub:load", "torch.nn:Linear", "zoo_of_ones_own:network", "json:loads"),
        *("zoo_of_ones_own:by_flag", "zoo_installed:network"),
        *(f"zoo_of_others:{function}" for function in functions),
    ):
        with pytest.raises(InputError, match=r"takes a task and calls it.*def network\(task\)"):
            named.build(name, IMAGES, {}, seed=0)
    assert sys.modules["zoo_of_others"].CALLS == []


WITH_ARGUMENTS = """
from torch import nn

def network(task, width, *, bias=True, act="ReLU", slope: float = 0.1):
    network.seen = (width, bias, act, slope)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, task.outputs))

def any_of(task, **others):
    return network(task, **others)
"""


def test_a_function_gets_the_arguments_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_with_arguments.py").write_text(WITH_ARGUMENTS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    name, given = "own_with_arguments:network", "width=5,bias=off,act=GELU,slope=1e-3"
    config = TrainConfig(network=name, network_args=given)
    for function in (name, "own_with_arguments:any_of"):
        named.build(function, IMAGES, config.arguments, seed=0)
        assert sys.modules["own_with_arguments"].network.seen == (5, False, "GELU", 1e-3)
    for arguments, told in (
        ({}, "missing a required argument: 'width'.*give what it needs: --network-args"),
        ({"width": 1, "slop": 2}, "--network-args slop: .* did you mean slope"),
        ({"width": 1, "task": 2}, "--network-args task: "),
    ):
        with pytest.raises(InputError, match=told):
            named.build(name, IMAGES, arguments, seed=0)


SEVERAL = """
import random
import numpy as np
import torch
from torch import nn
from apts_mpi.networks.task import Task

class Own(nn.Module):
    def __init__(self, task: Task, width: int = 5, pretrained: bool = False):
        super().__init__()
        self.numbers = random.random(), np.random.rand(), float(torch.rand(()))
        self.tokens = nn.Embedding(task.outputs, width)
        self.head = nn.LazyLinear(task.outputs)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.head(self.tokens(x))

def in_training(task: "Task"):
    class Failing(Own):
        def forward(self, x):
            if self.training:
                raise ValueError("only here")
            return super().forward(x)
    return Failing(task)

def too_small(task):
    module = Own(task)
    module.tokens = nn.Embedding(task.outputs - 1, 5)
    return module

def made(what):
    def network(task):
        module = Own(task)
        module.head = nn.Linear(5, task.outputs)
        what(module)
        return module
    return network

sparse = made(lambda m: m.register_buffer("odd", torch.eye(2).to_sparse()))
meta = made(lambda m: m.register_buffer("odd", torch.empty(2, device="meta")))
half = made(lambda m: m.head.bfloat16())
shared = made(lambda m: m.register_buffer("odd", m.head.bias.data[1:]))
frozen = made(lambda m: m.requires_grad_(False))
lines = made(lambda m: m.register_buffer("two\\nlines", torch.zeros(1)))
"""


def test_what_a_users_module_holds_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "several_of_a_user.py").write_text(SEVERAL, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    def draws() -> list[float]:
        return [random.random(), np.random.rand(), float(torch.rand(()))]

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    drawn = draws()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    first: Any = named.build("several_of_a_user:Own", TEXT, {}, seed=2**40)[0]
    assert draws() == drawn, "the generators go on as if nothing had been built"
    second: Any = named.build("several_of_a_user:Own", TEXT, {}, seed=2**40)[0]
    assert first.numbers == second.numbers
    assert torch.equal(first.head.weight, second.head.weight), "a lazy one is made by the seed too"
    assert first.calls == second.calls == 1, "what makes lazy ones; no trial leaves anything"
    for name, told in (
        ("in_training", r"several_of_a_user\.py:24, in forward: ValueError: only here"),
        ("too_small", "IndexError"),
        ("sparse", "its odd is sparse"),
        ("meta", "its odd is strided on meta"),
        ("half", r"its head\.weight is trained and bfloat16"),
        ("shared", r"its head\.bias and odd share memory"),
        ("lines", r"its 'two\\nlines' has a name that is not one line"),
        ("frozen", "no parameters that require a gradient"),
    ):
        with pytest.raises(InputError, match=told):
            named.build(f"several_of_a_user:{name}", TEXT, {}, seed=0)

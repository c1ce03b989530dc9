"""Steps of the baselines, one after another, against the reference on an ordinary module."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import InputError
from apts_mpi.method import packages
from apts_mpi.method.baselines import Baseline
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.layers import Layer, layers
from apts_mpi.method.peers import baseline
from apts_mpi.method.schedule import Schedule
from apts_mpi.method.state import require_sound
from apts_mpi.trust_region.objective import Objective
from tests.method.problem import load, parameters

STEPS, WARM = 40, 4
PACKAGED = {"schedule-free": "schedulefree", "prodigy": "prodigyopt"}
RATES = {"sgd": 0.1, "adam": 0.01, "adamw": 0.01, "muon": 0.02, "schedule-free": 0.01}
RATES["prodigy"] = 1.0


class Words(nn.Module):
    """All kinds of parameters; its gradients are drawn, so that nothing is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.words = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.kernel = nn.Conv1d(6, 8, 3)
        self.wide = nn.Linear(8, 20)
        self.head = nn.Linear(20, 11)


class Known(FlatParameters):
    """As training has them: with their module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.parameters())
        self.module = module

    def layers(self) -> list[Layer]:
        return layers(self._parameters, self.module)


def gradients(module: nn.Module, step: int) -> Tensor:
    """(n,) of a step: towards zero, with noise."""
    generator = torch.Generator().manual_seed(step)
    vector = parameters(module)
    return vector + torch.randn(vector.shape, generator=generator)


class Both:
    """Muon of the hidden weights as matrices, AdamW of the others, as their users join them."""

    def __init__(self, module: Words, lr: float) -> None:
        hidden = {"kernel.weight", "wide.weight"}
        named = dict(module.named_parameters())
        self.matrices = {
            name: nn.Parameter(named[name].detach().flatten(1)) for name in sorted(hidden)
        }
        self.named = named
        others = [p for name, p in named.items() if name not in hidden]
        muon: dict[str, Any] = {"momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
        self.optimizers: list[Optimizer] = [
            Muon(list(self.matrices.values()), lr=lr, weight_decay=0.0, **muon),
            AdamW(others, lr=lr, weight_decay=0.0),
        ]

    def step(self) -> None:
        for name, matrix in self.matrices.items():
            grad = self.named[name].grad
            assert grad is not None
            matrix.grad = grad.flatten(1)
        for each in self.optimizers:
            each.step()
        for name, matrix in self.matrices.items():
            self.named[name].data.copy_(matrix.detach().view_as(self.named[name]))


def reference(name: str, module: Words, lr: float, warms_up: bool) -> Any:
    """Of torch or of the authors, with ``optimizers`` whose rates a scheduler sets."""
    p = list(module.parameters())
    if name == "muon":
        return Both(module, lr)
    if name == "schedule-free":
        made = pytest.importorskip("schedulefree").AdamWScheduleFree(p, lr=lr)
        made.train()
        return made
    if name == "prodigy":
        return pytest.importorskip("prodigyopt").Prodigy(p, lr=lr, safeguard_warmup=warms_up)
    makes: dict[str, Callable[[], Optimizer]] = {
        "sgd": lambda: SGD(p, lr=lr, momentum=0.9),
        "adam": lambda: Adam(p, lr=lr),
        "adamw": lambda: AdamW(p, lr=lr, weight_decay=0.01),
    }
    return makes[name]()


class Pair:
    """A baseline and its reference, on networks that start equal and see equal gradients."""

    def __init__(self, name: str, schedule: Schedule) -> None:
        self.module, self.plain = Words(), Words()
        lr = RATES[name]
        self.flat = Known(self.module)
        self.own = baseline(name, self.flat, Comm(), lr=lr, local_steps=1, schedule=schedule)
        self.reference = reference(name, self.plain, lr, schedule.warmup > 0)
        given = getattr(self.reference, "optimizers", [self.reference])
        self.schedulers = [LambdaLR(each, shapes(schedule)) for each in given]

    def step(self, k: int) -> None:
        self.own.done = k / STEPS
        self.own.iterate(drawn(self.flat, gradients(self.module, k)))
        slopes = copy.deepcopy(self.plain)
        load(slopes, gradients(self.plain, k))
        for p, slope in zip(self.plain.parameters(), slopes.parameters(), strict=True):
            p.grad = slope.detach()
        self.reference.step()
        for each in self.schedulers:
            each.step()

    def difference(self) -> float:
        """The largest."""
        return float((parameters(self.module) - parameters(self.plain)).abs().max())

    def moved(self) -> float:
        """The farthest from the start."""
        return float((parameters(self.plain) - parameters(Words())).abs().max())


def shapes(schedule: Schedule) -> Callable[[int], float]:
    """The schedule by the number of the step, as a user of LambdaLR writes it."""

    def factor(k: int) -> float:
        warm = round(schedule.warmup * STEPS)
        if schedule.shape == "constant":
            return min((k + 1) / warm, 1.0) if warm else 1.0
        if k < warm:
            return (k + 1) / warm
        if schedule.shape == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (k - warm) / (STEPS - warm)))
        return min((STEPS - k) / (0.2 * STEPS), 1.0)

    return factor


def drawn(flat: FlatParameters, gradient: Tensor) -> Callable[[], tuple[Objective, int]]:
    """A minibatch of one sample with that gradient."""

    def objective(with_gradient: bool) -> float:
        flat.gradient.copy_(gradient)
        return 1.0

    return lambda: (objective, 1)


CONSTANT, COSINE = Schedule(step=1 / STEPS), Schedule("cosine", WARM / STEPS, 1 / STEPS)
WSD = Schedule("wsd", 0.0, 1 / STEPS)


@pytest.mark.parametrize("schedule", [CONSTANT, COSINE, WSD], ids=lambda each: each.shape)
@pytest.mark.parametrize("name", RATES)
def test_every_step_is_that_of_the_reference(name: str, schedule: Schedule) -> None:
    pair = Pair(name, schedule)
    for k in range(STEPS):
        pair.step(k)
        assert pair.difference() < 5e-6, k
    assert pair.moved() > 0.01


def test_of_schedule_free_the_average_is_evaluated_and_training_goes_its_way() -> None:
    pair, unseen = Pair("schedule-free", COSINE), Pair("schedule-free", COSINE)
    for k in range(STEPS):
        pair.step(k)
        unseen.step(k)
        before = pair.flat.vector.clone()
        with pair.own.averaged():
            pair.reference.eval()
            assert pair.difference() < 5e-6
            assert not torch.equal(pair.flat.vector, before) or k == 0
            pair.reference.train()
        assert torch.equal(pair.flat.vector, before)
    assert torch.equal(pair.flat.vector, unseen.flat.vector)


@pytest.mark.parametrize("name", RATES)
def test_from_a_saved_state_the_steps_are_the_same(name: str) -> None:
    if name in PACKAGED:
        pytest.importorskip(PACKAGED[name])
    whole, part = stepped(name, range(8)), stepped(name, range(5))
    state = copy.deepcopy(part.state_dict())
    require_sound(state, iterations=5, n=part.flat.n)
    again = stepped(name, range(5, 8), state, part.flat.vector)
    assert torch.equal(again.flat.vector, whole.flat.vector)


def stepped(
    name: str, steps: range, state: dict[str, Any] | None = None, start: Tensor | None = None
) -> Baseline:
    module = Words()
    flat = Known(module)
    own = baseline(name, flat, Comm(), lr=RATES[name], local_steps=1, schedule=COSINE)
    if state is not None and start is not None:
        flat.vector.copy_(start)
        own.load_state_dict(state)
    for k in steps:
        own.done = k / STEPS
        own.iterate(drawn(flat, gradients(module, k)))
    return own


@pytest.mark.parametrize(
    ("name", "entry", "value"),
    [
        ("schedule-free", "k", -1),
        ("schedule-free", "weight_sum", "much"),
        ("schedule-free", "lr_max", 10**400),
        ("schedule-free", "z", torch.zeros(3)),
        ("prodigy", "d", math.nan),
        ("prodigy", "d_numerator", 10**400),
        ("prodigy", "p0", 1.0),
        ("muon", "exp_avg", torch.zeros(3)),
    ],
)
def test_a_state_that_cannot_be_is_refused(name: str, entry: str, value: object) -> None:
    if name in PACKAGED:
        pytest.importorskip(PACKAGED[name])
    own = stepped(name, range(2))
    state = own.state_dict()
    state["optimizer"] = {**state["optimizer"], entry: value}
    with pytest.raises(ValueError, match="the optimizer's optimizer"):
        require_sound(state, iterations=2, n=own.flat.n)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("schedule-free", r"schedulefree is not installed.*`pip install 'schedulefree'` \(or"),
        ("prodigy", r"prodigyopt is not installed.*\(or 'apts_mpi\[peers\]'\)"),
        ("muon", r"torch>=2.9 is not installed; install it with `pip install 'torch>=2.9'`$"),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(
    name: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=f"--optimizer {name}: {line}"):
        packages.require_package(name)


def test_what_torch_has_needs_no_package() -> None:
    for name in ("adam", "muon", "diloco", "apts"):
        packages.require_package(name)

"""The same steps by torch's own optimizers, and minibatches that are counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer

from apts_mpi.comm.communicator import Comm
from apts_mpi.method.baselines import Baseline
from apts_mpi.method.closures import ClosureObjective
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.options import BASELINES
from apts_mpi.method.peers import baseline
from apts_mpi.method.schedule import CONSTANT, Schedule
from apts_mpi.trust_region.objective import Objective
from tests.method.problem import data, network, parameters

PACKAGED = {"schedule-free": "schedulefree", "prodigy": "prodigyopt"}
NAMES = [name for name in BASELINES if find_spec(PACKAGED.get(name, "torch")) is not None]
STEPS = 6
LR, FAST = 0.05, 10.0  # Prodigy finds its own, which it starts small
COSINE = Schedule("cosine", 0.3, 1 / 9)  # of three iterations of three steps


class Drawer:
    """``draw`` over given minibatches, one after another; it counts them."""

    def __init__(
        self,
        flat: FlatParameters,
        module: nn.Module,
        batches: Sequence[Tensor],
        spoil: Callable[[int, Tensor], Tensor] = lambda _number, loss: loss,
    ) -> None:
        self.flat, self.module, self.batches, self.spoil = flat, module, batches, spoil
        self.drawn = 0

    def __call__(self) -> tuple[Objective, int]:
        index = self.batches[self.drawn]
        self.drawn += 1
        number, (x, y) = self.drawn, data()

        def closure() -> Tensor:
            assert len(index), "a loss over no samples was asked for"
            return self.spoil(number, F.cross_entropy(self.module(x[index]), y[index]))

        return ClosureObjective(self.flat, [closure]), len(index)


def trained(
    build: Callable[[FlatParameters], Baseline], batches: Sequence[Tensor], iterations: int
) -> tuple[nn.Module, list[Iteration]]:
    """A network after so many iterations over a rank's minibatches, and what they did."""
    module = network()
    flat = FlatParameters(module.parameters())
    method, draw = build(flat), Drawer(flat, module, batches)
    results = []
    for k in range(iterations):
        method.done = k / iterations
        results.append(method.iterate(draw))
    assert draw.drawn == len(batches)
    flat.check_views()
    return module, results


def builder(
    name: str, comm: Comm, local_steps: int, schedule: Schedule = CONSTANT
) -> Callable[[FlatParameters], Baseline]:
    """A baseline by name, over parameters to come."""
    lr = FAST if name == "prodigy" else LR
    return lambda flat: baseline(
        name, flat, comm, lr=lr, local_steps=local_steps, schedule=schedule
    )


class Both:
    """Muon of the first layer's weight, AdamW of all others, as their users join them."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        first, *others = module.parameters()
        length = {"adjust_lr_fn": "match_rms_adamw"}
        self.parts: list[Optimizer] = [
            Muon([first], lr=LR, weight_decay=decay, **length),  # type: ignore[arg-type]
            AdamW(others, lr=LR, weight_decay=decay),
        ]

    def zero_grad(self) -> None:
        for each in self.parts:
            each.zero_grad()

    def step(self) -> None:
        for each in self.parts:
            each.step()


Plain = Optimizer | Both


def averaging(module: nn.Module, name: str) -> Plain:
    """Torch's own, or the authors', of those that average gradients."""
    p = list(module.parameters())
    if name == "muon":
        return Both(module, 0.0)
    if name == "schedule-free":
        from schedulefree import AdamWScheduleFree

        made: Optimizer = AdamWScheduleFree(p, lr=LR)
        made.train()  # type: ignore[attr-defined]
        return made
    if name == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy(p, lr=FAST)
    if name == "sgd":
        return SGD(p, lr=LR, momentum=0.9)
    return Adam(p, lr=LR) if name == "adam" else AdamW(p, lr=LR, weight_decay=0.01)


def take_step(module: nn.Module, optimizer: Plain, index: Tensor) -> float:
    """A plain torch step; returns the loss before it."""
    x, y = data()
    optimizer.zero_grad()
    loss = F.cross_entropy(module(x[index]), y[index])
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def assert_near(one: Tensor, two: Tensor, tolerance: float = 2e-5, name: str = "") -> None:
    """Equal up to rounding, and not because nothing moved; Muon rounds to 16 bits on the way."""
    if name in ("muon", "muloco"):
        tolerance = 5e-3
    assert float((parameters(network()) - one).abs().max()) > 0.01
    assert torch.allclose(one, two, atol=tolerance, rtol=0), float((one - two).abs().max())

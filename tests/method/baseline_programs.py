"""What the tests of the baselines run on every rank: ``python programs.py baseline.NAME...``.

Every reference is torch's own optimizer on the network's own parameters, in one process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer

from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import AgreedError
from apts_mpi.method.baselines import Baseline
from apts_mpi.method.flat import FlatParameters, closure_objective
from apts_mpi.method.iteration import Iteration
from apts_mpi.method.options import AVERAGING, BASELINES, LOCAL
from apts_mpi.method.peers import baseline, diloco, local_sgd
from apts_mpi.method.schedule import CONSTANT, Schedule
from apts_mpi.trust_region.objective import Draw, Objective
from tests.method.problem import data, load, minibatches, network, own_communicator, parameters

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

        return closure_objective(self.flat, closure), len(index)


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


def averaged_gradients() -> None:
    """Ranks with uneven minibatches do what one does with the joined ones, and what torch does."""
    comm = Comm()
    alone = Comm(own_communicator())
    parts = [minibatches(k, comm.size) for k in range(STEPS)]
    for name in (each for each in NAMES if each in AVERAGING):
        own, joined = [p[comm.rank] for p in parts], [torch.cat(p) for p in parts]
        module, results = trained(builder(name, comm, 1), own, STEPS)
        one, _ = trained(builder(name, alone, 1), joined, STEPS)
        plain = network()
        optimizer = averaging(plain, name)
        losses = [take_step(plain, optimizer, index) for index in joined]
        assert_near(parameters(module), parameters(plain), name=name)
        assert_near(parameters(one), parameters(plain), name=name)
        comm.check_replicas(parameters(module))
        for result, loss in zip(results, losses, strict=True):
            assert abs(result.loss - loss) < 1e-5
            assert result.accepted
            assert result.gradient_evaluations == 40


def local_sgd_of_one_step() -> None:
    """With H = 1 and no momentum, averaged parameters are averaged gradients: plain SGD."""
    comm = Comm()
    parts = [minibatches(k, comm.size) for k in range(STEPS)]
    module, _ = trained(
        lambda flat: local_sgd(flat, comm, lr=LR, local_steps=1, momentum=0.0),
        [p[comm.rank] for p in parts],
        STEPS,
    )
    plain = network()
    optimizer = SGD(plain.parameters(), lr=LR)
    for p in parts:
        take_step(plain, optimizer, torch.cat(p))
    assert_near(parameters(module), parameters(plain))


def outer_of(module: nn.Module, name: str) -> Optimizer:
    """The published outer step; that of local SGD is the average itself."""
    if name in ("diloco", "muloco"):
        momentum = 0.9 if name == "diloco" else 0.6
        return SGD(module.parameters(), lr=0.7, momentum=momentum, nesterov=True)
    return SGD(module.parameters(), lr=1.0)


def inner_of(module: nn.Module, name: str) -> Plain:
    """The inner optimizer, torch's own on the network's own parameters."""
    if name == "muloco":
        return Both(module, 0.1)
    if name == "diloco":
        return AdamW(module.parameters(), lr=LR, weight_decay=0.1)
    return SGD(module.parameters(), lr=LR, momentum=0.9)


def identical_data() -> None:
    """Ranks with the same minibatches do what one process does, with the published outer step."""
    comm = Comm()
    batches = [torch.cat(minibatches(k, 1)) for k in range(STEPS)]
    for name in LOCAL:
        module, _ = trained(builder(name, comm, 2), batches, STEPS // 2)
        plain = network()
        inner, outer = inner_of(plain, name), outer_of(plain, name)
        for k in range(0, STEPS, 2):
            start = [p.detach().clone() for p in plain.parameters()]
            for index in batches[k : k + 2]:
                take_step(plain, inner, index)
            if name != "local-sgd":  # whose mean of equal parameters is these
                for p, before in zip(plain.parameters(), start, strict=True):
                    p.grad = before - p.detach()
                    p.data.copy_(before)
                outer.step()
        assert_near(parameters(module), parameters(plain), name=name)


def cosine(step: int) -> float:
    """COSINE by hand, of nine steps."""
    turn = max(step / 9 - 0.3, 0.0) / 0.7
    return min((step + 1) / 9 / 0.3, 1.0) * 0.5 * (1 + math.cos(math.pi * turn))


def simulated_replicas() -> None:
    """N ranks do what N networks in one process do that are averaged by the samples seen.

    The inner rates follow a schedule, the outer one does not.
    """
    comm = Comm()
    steps = 3
    parts = [minibatches(k, comm.size) for k in range(steps * 3)]
    for name in LOCAL:
        module, results = trained(
            builder(name, comm, steps, COSINE),
            [p[comm.rank] for p in parts],
            3,
        )
        shared = network()
        outer = outer_of(shared, name)
        replicas = [network() for _ in range(comm.size)]
        inner = [inner_of(replica, name) for replica in replicas]
        for k, result in enumerate(results):
            round_parts = parts[k * steps : (k + 1) * steps]
            theta = parameters(shared)
            mean, total, losses = torch.zeros_like(theta, dtype=torch.float64), 0, 0.0
            for d, replica in enumerate(replicas):
                load(replica, theta)
                for j, p in enumerate(round_parts):
                    for part in getattr(inner[d], "parts", [inner[d]]):
                        part.param_groups[0]["lr"] = LR * cosine(k * steps + j)
                    losses += len(p[d]) * take_step(replica, inner[d], p[d])
                seen = sum(len(p[d]) for p in round_parts)
                mean += seen * parameters(replica).double()
                total += seen
            gradient = (theta.double() - mean / total).float()
            slopes = network()
            load(slopes, gradient)
            for parameter, slope in zip(shared.parameters(), slopes.parameters(), strict=True):
                parameter.grad = slope.detach()
            outer.step()
            assert abs(result.loss - losses / total) < 1e-5
            assert result.gradient_evaluations == total == 40 * steps
        assert_near(parameters(module), parameters(shared), name=name)
        comm.check_replicas(parameters(module))


def one_message() -> None:
    """An iteration has one vector message and no other; replicas are equal, bit for bit."""
    comm = Comm()
    for name in NAMES:
        h = 3 if name in LOCAL else 1
        module = network(seed=comm.rank)  # rank 0's values are everyone's
        flat = FlatParameters(module.parameters())
        method = baseline(name, flat, comm, lr=LR, local_steps=h)
        comm.check_replicas(flat.vector)
        batches = [minibatches(k, comm.size)[comm.rank] for k in range(4 * h)]
        draw = Drawer(flat, module, batches)
        for k in range(4):
            before = vars(comm.traffic).copy()
            method.iterate(draw)
            sent = {
                key: value - before[key]
                for key, value in vars(comm.traffic).items()
                if not key.startswith(("seconds", "bytes"))
            }
            assert sent.pop("vector_allreduces") == 1, name
            assert not any(sent.values()), (name, sent)
            assert draw.drawn == (k + 1) * h
            comm.check_replicas(flat.vector)


def empty_batches() -> None:
    """A rank without samples moves nothing but takes part, also where only a step has none."""
    comm = Comm()
    nothing = torch.zeros(0, dtype=torch.int64)
    for name in NAMES:
        h = 2 if name in LOCAL else 1
        full = [torch.cat(minibatches(k, 1)) for k in range(STEPS * h)]
        # Rank 0 has samples in the last iteration alone; the others agree with one rank's run.
        own = full if comm.rank else [nothing] * ((STEPS - 1) * h) + full[-h:]
        module, results = trained(builder(name, comm, h), own, STEPS)
        comm.check_replicas(parameters(module))
        work = [r.gradient_evaluations for r in results]
        assert work == [40 * h * (comm.size - 1)] * (STEPS - 1) + [40 * h * comm.size]
        one, _ = trained(builder(name, Comm(own_communicator()), h), full, STEPS)
        if h == 1:  # rank 0's inner state is its own where there are inner steps
            assert_near(parameters(module), parameters(one), name=name)
        try:
            trained(builder(name, comm, h), [nothing] * h, 1)
        except ValueError as error:
            assert "0 samples" in str(error)
        else:
            raise AssertionError("no samples at all were taken")


def non_finite() -> None:
    """A loss or gradient that is not finite on one rank gives all the same error, none moves."""
    comm = Comm()
    last = comm.rank == comm.size - 1

    def overflow(number: int, loss: Tensor) -> Tensor:
        return loss * torch.inf if number == 3 and last else loss

    def steep(number: int, loss: Tensor) -> Tensor:
        bad = number == 3 and last
        return loss + (torch.sqrt(loss - loss.detach()) if bad else 0.0)  # slope infinite at 0

    for name in NAMES:
        for spoil, what in ((overflow, "loss"), (steep, "gradient")):
            module = network()
            flat = FlatParameters(module.parameters())
            method = baseline(name, flat, comm, lr=LR, local_steps=1)
            batches = [minibatches(k, comm.size)[comm.rank] for k in range(4)]
            draw: Draw = Drawer(flat, module, batches, spoil)
            for _ in range(2):
                method.iterate(draw)
            before = flat.vector.clone()
            line = "nothing was raised"
            try:
                method.iterate(draw)
            except FloatingPointError as error:
                line = str(error)
            assert line.startswith(f"the {what} of iteration 3 is not finite: lower --lr"), line
            comm.require_same("an error", [line])
            assert torch.equal(flat.vector, before)


def different_networks() -> None:
    """Ranks whose networks differ are told so."""
    comm = Comm()
    module = nn.Linear(6, 3 + (comm.rank == 1))
    try:
        diloco(FlatParameters(module.parameters()), comm, lr=LR, local_steps=1)
    except AgreedError as caught:
        assert "rank 1" in str(caught)
    else:
        raise AssertionError("no error was raised")

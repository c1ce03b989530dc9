"""What the tests of the baselines run on every rank: ``python programs.py baseline.NAME...``.

Every reference is torch's own optimizer on the network's own parameters, in one process.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import AgreedError
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.options import AVERAGING, LOCAL
from apts_mpi.method.peers import baseline, diloco, local_sgd
from apts_mpi.trust_region.objective import Draw
from tests.method.baseline_references import (
    COSINE,
    LR,
    NAMES,
    STEPS,
    Both,
    Drawer,
    Plain,
    assert_near,
    averaging,
    builder,
    take_step,
    trained,
)
from tests.method.problem import load, minibatches, network, own_communicator, parameters


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

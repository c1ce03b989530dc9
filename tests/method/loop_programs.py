"""A user's own loop on ranks: ``mpirun -n N python programs.py loop.NAME``; they assert."""

from __future__ import annotations

import io
import logging
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi import APTS, Comm, StochasticAPTS
from apts_mpi.errors import AgreedError
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.stochastic import StochasticMethod
from apts_mpi.trust_region.objective import Batch

STEPS = 3
X = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0.5)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(net: nn.Module, index: Tensor) -> Tensor:
    return cross_entropy(net(X[index]), Y[index])


def minibatches(rank: int, count: int, epoch: int = 0) -> list[Tensor]:
    """Of 16 samples, the last one smaller."""
    generator = torch.Generator().manual_seed(100 * rank + epoch)
    sizes = [16] * (count - 1) + [3] if count else []
    return [torch.randperm(len(X), generator=generator)[:size] for size in sizes]


def same(comm: Comm, optimizer: StochasticAPTS) -> None:
    """The average is everybody's, and so is the radius."""
    with optimizer.averaged():
        comm.check_replicas(nn.utils.parameters_to_vector(optimizer.param_groups[0]["params"]))
    comm.require_same("numbers", [f"{optimizer.radius} {optimizer.iterations}"])


def equals_the_programs_iteration() -> None:
    """The same minibatches lead where the engine goes, bit for bit, on every rank."""
    comm, net, other = Comm(), network(), network()
    optimizer = StochasticAPTS(net.parameters(), local_steps=STEPS)
    flat = FlatParameters(other.parameters())
    method = StochasticMethod(flat, comm=Comm(), local_steps=STEPS)
    given = iter(minibatches(comm.rank, 41))

    def draw() -> Batch:
        index = next(given)

        def objective(with_gradient: bool) -> float:
            loss = loss_of(other, index)
            if with_gradient:
                flat.backward(loss)
            return float(loss.detach())

        return objective, len(index)

    for index in minibatches(comm.rank, 41):
        optimizer.step(partial(loss_of, net, index), samples=len(index))
        if optimizer.iterations == 8:
            break
    for _ in range(8):
        method.iterate(draw)
    assert torch.equal(nn.utils.parameters_to_vector(net.parameters()), flat.vector)


def classification_on_some_ranks() -> None:
    """Where only some say so all are refused; where all say alike they have it."""
    comm, net = Comm(), network()
    for told in (False, True):
        optimizer = StochasticAPTS(net.parameters(), comm=comm, classification=told)
        assert optimizer._method_now.options.classification == told
    try:
        StochasticAPTS(net.parameters(), comm=comm, classification=comm.rank > 0)
    except ValueError as error:
        assert f"is True on {comm.size - 1} of {comm.size} ranks" in str(error)
    else:
        raise AssertionError("nothing was raised")


def loops_of_several_lengths() -> None:
    """Nobody waits for ever, all train, and an open iteration continues in the next loop."""
    comm, net = Comm(), network()
    optimizer = StochasticAPTS(net.parameters(), comm=comm, local_steps=STEPS)
    lengths = [(25, 4, 0)[(comm.rank + epoch) % 3] for epoch in range(4)]
    for epoch, length in enumerate(lengths):
        with optimizer.join():
            for index in minibatches(comm.rank, length, epoch):
                optimizer.step(partial(loss_of, net, index), samples=len(index))
        same(comm, optimizer)
    whole = sum(max((25, 4, 0)[(r + e) % 3] for r in range(comm.size)) for e in range(4))
    assert whole / 4 - 5 <= optimizer.iterations <= comm.size * whole / 3
    with torch.no_grad(), optimizer.averaged():
        assert float(cross_entropy(net(X), Y)) < 0.7
    alone = [1.0, 2.0] if comm.rank == 0 else []
    before = optimizer.iterations
    with optimizer.join():  # so few that the iteration stays open
        for _ in alone[:1]:
            optimizer.step(lambda: loss_of(net, torch.arange(9)), samples=9)
    assert optimizer.iterations - before <= 1


def errors_reach_all_ranks() -> None:
    """Of a closure and of a loop, on one rank: one line for all, and the loop can continue."""
    comm, net = Comm(), network()
    bad = comm.size - 1
    for fails_at in (0, 2, 3):  # the search, a local step, a control batch
        for joins in (False, True):
            optimizer = StochasticAPTS(net.parameters(), comm=comm, local_steps=STEPS)
            batches = minibatches(comm.rank, 12)

            def closure(k: int, index: Tensor) -> Tensor:
                if comm.rank == bad and k == fails_at:  # noqa: B023
                    raise ValueError("a bad sample")
                return loss_of(net, index)

            def loop() -> None:
                for k, index in enumerate(batches):  # noqa: B023
                    optimizer.step(partial(closure, k, index), samples=len(index))  # noqa: B023

            try:
                if joins:
                    with optimizer.join():
                        loop()
                else:
                    loop()
            except ValueError as error:
                assert (comm.rank, str(error)) == (bad, "a bad sample")
            except AgreedError as error:
                assert comm.rank != bad
                assert "a bad sample (rank" in str(error)
            else:
                raise AssertionError("nothing was raised")
            for index in batches:
                optimizer.step(partial(loss_of, net, index), samples=len(index))
            same(comm, optimizer)

    optimizer = StochasticAPTS(net.parameters(), comm=comm, local_steps=STEPS)
    try:
        with optimizer.join():
            for index in minibatches(comm.rank, 9):
                if comm.rank == bad and optimizer.iterations == 1:
                    raise OSError("the loader's own")
                optimizer.step(partial(loss_of, net, index), samples=len(index))
    except (OSError, AgreedError) as error:
        assert "the loader's own" in str(error)
    else:
        raise AssertionError("nothing was raised")
    whole = APTS(net.parameters(), comm=comm)
    try:
        whole.step(lambda: loss_of(net, torch.arange(9)) if comm.rank != bad else 1 // 0)  # type: ignore[arg-type,return-value]
    except (ZeroDivisionError, AgreedError) as error:
        assert "division" in str(error)
    else:
        raise AssertionError("nothing was raised")


def states_are_taken_up() -> None:
    """Each rank's own: bit for bit; rank 0's on all: without a difference between the ranks."""
    comm = Comm()
    nets = [network() for _ in range(3)]
    optimizers = [
        StochasticAPTS(net.parameters(), comm=comm, local_steps=STEPS, weight_decay=0.1)
        for net in nets
    ]

    def train(k: int, count: int, epoch: int) -> Tensor:
        for index in minibatches(comm.rank, count, epoch):
            optimizers[k].step(partial(loss_of, nets[k], index), samples=len(index))
        return nn.utils.parameters_to_vector(nets[k].parameters()).detach().clone()

    train(0, 13, 0)
    file = io.BytesIO()
    torch.save(optimizers[0].state_dict(), file)
    file.seek(0)
    optimizers[1].load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(train(0, 9, 1), train(1, 9, 1))
    state = optimizers[0].state_dict()
    state["method"]["options"]["rank"] = 0  # as all ranks read one file
    optimizers[2].load_state_dict(state)
    train(2, 13, 2)
    same(comm, optimizers[2])


def statistics_of_batch_norm_are_the_same_on_all() -> None:
    """Weighed by the samples of each rank; and an error on one rank reaches all."""
    comm, net = Comm(), network()
    net.insert(1, norm := nn.BatchNorm1d(8))
    optimizer = StochasticAPTS(net.parameters(), comm=comm, local_steps=STEPS)
    for index in minibatches(comm.rank, 10):
        optimizer.step(partial(loss_of, net, index))
    own = [X[: 30 * (comm.rank + 1)]]
    with optimizer.averaged(net, own):
        assert norm.running_mean is not None
        with torch.no_grad():
            means = [net[0](X[: 30 * (rank + 1)]).mean(0) * (rank + 1) for rank in range(comm.size)]
        wanted = torch.stack(means).sum(0) / sum(range(comm.size + 1))
        assert torch.allclose(norm.running_mean, wanted, atol=1e-5)
        for buffer in (norm.running_mean, norm.running_var):
            assert buffer is not None
            comm.check_replicas(buffer)
    try:
        with optimizer.averaged(net, [] if comm.rank == 0 else own):
            raise AssertionError("nothing was raised")
    except (ValueError, AgreedError) as error:
        assert "no batch of two samples" in str(error)


def bad_states_are_refused_by_all() -> None:
    """Also where one rank alone has one."""
    comm, net = Comm(), network()
    logging.getLogger("apts_mpi").handlers = [logging.NullHandler()]
    optimizer = StochasticAPTS(net.parameters(), comm=comm, local_steps=STEPS)
    state = optimizer.state_dict()
    try:
        optimizer.load_state_dict({} if comm.rank == comm.size - 1 else state)
    except (ValueError, AgreedError) as error:
        assert "the state is of another optimizer" in str(error)
    else:
        raise AssertionError("it was taken")

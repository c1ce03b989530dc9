"""What the tests of joining run on every rank: ``mpirun -n N python programs.py joining.NAME``.

Each function asserts on every rank; a failed assertion ends the job with its traceback.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from mpi4py import MPI
from torch import Tensor, nn

from apts_mpi.comm import gpu_aware
from apts_mpi.comm.communicator import STOP, Comm
from apts_mpi.comm.compression import COMPRESSIONS, CompressedMessage, message_for
from apts_mpi.comm.message import DIGITS, FLAGS, DeviceMessage
from apts_mpi.data.sources.load import load_source
from tests.method.driving import Deterministic, Stochastic

CPU = torch.device("cpu")
COMPRESSED = COMPRESSIONS[1:]
# Of a sum, relative to its summands.
ERROR = {"none": 1e-6, "bf16": 2.0**-7, "fp16": 2.0**-9, "int8": 2.0**-6, "int4": 2.0**-2}


def comms() -> list[Comm]:
    """Flat; hierarchical on this machine; on hosts of two ranks, of one, and of uneven ones."""
    rank = MPI.COMM_WORLD.Get_rank()
    numbers = (None, rank // 2, rank, int(rank > 0))
    return [Comm(), *(Comm(hierarchical=True, host_number=number) for number in numbers)]


def rows_of_scalars() -> None:
    """N ranks with a subdomain each sum exactly what one rank with N subdomains does."""
    alone = Comm(MPI.COMM_SELF)
    for comm in comms():
        for rows in (1, 3):
            table = np.random.default_rng(1).normal(size=(comm.size * rows, 4)).tolist()
            own = table[comm.rank * rows : (comm.rank + 1) * rows]
            expected = alone.sum_scalars(*table)
            assert comm.sum_scalars(*own) == expected
            for compress in COMPRESSED:
                message = message_for(compress, 5, 4, CPU, comm)
                assert comm.sum_message(message, *own) == expected


def sums() -> None:
    """Vectors are summed as close as their format is, with the same bits on all ranks."""
    for comm in comms():
        for compress, error in ERROR.items():
            for n in (0, 1, 2, 1000):
                message = message_for(compress, n, 2, CPU, comm)
                for seed in range(2):
                    all_of = np.random.default_rng(seed).normal(size=(comm.size, n))
                    message.vector.copy_(torch.from_numpy(all_of[comm.rank]))
                    got = comm.sum_message(message, (0.25, float(comm.rank)))
                    assert got == [0.25 * comm.size, comm.size * (comm.size - 1) / 2]
                    comm.check_replicas(message.vector)
                    bound = 3 * error * (np.abs(all_of).sum(axis=0) + 1)
                    assert (np.abs(message.vector.numpy() - all_of.sum(axis=0)) <= bound).all()
                    message.keep()


def exact_on_request() -> None:
    """A message that compresses sums in float32 where it is told to."""
    for comm in comms():
        message = message_for("bf16", 3, 1, CPU, comm)
        message.vector.fill_(1.0 + 2.0**-20)
        comm.sum_message(message, (1.0,), exact=True)
        assert message.vector.tolist() == [comm.size * (1.0 + 2.0**-20)] * 3
        message.vector.fill_(1.0 + 2.0**-20)
        comm.sum_message(message, (1.0,))
        rounds = isinstance(message, CompressedMessage)
        assert (message.vector[0] == comm.size * (1.0 + 2.0**-20)) == (not rounds)


def non_finite() -> None:
    """NaN or infinity of one rank is there on every rank, whatever the format and the way."""
    for comm in comms():
        for compress in ERROR:
            message = message_for(compress, 4, 1, CPU, comm)
            for bad in (float("nan"), float("inf")):
                message.vector.fill_(1.0)
                if comm.rank == comm.size - 1:
                    message.vector[2] = bad
                (scalar,) = comm.sum_message(message, (bad if comm.rank == 0 else 1.0,))
                assert np.isnan(scalar)
                whole = compress in ("int8", "int4") and isinstance(message, CompressedMessage)
                expected = [np.nan] * 4 if whole else [comm.size, comm.size, bad, comm.size]
                assert np.array_equal(message.vector.numpy(), expected, equal_nan=True)
                message.drop()
            message.vector.fill_(1.0)
            comm.sum_message(message, (1.0,))
            assert np.allclose(message.vector, comm.size, rtol=0.01 if whole else 0.0)


def wishes() -> None:
    """Flags ride along in every kind of message."""
    for comm in comms():
        for compress in ERROR:
            message = message_for(compress, 2, 1, CPU, comm)
            comm.sum_message(message, (1.0,))
            assert not comm.wished(STOP)
            if comm.rank == comm.size - 1:
                comm.wish(STOP)
            comm.sum_message(message, (1.0,))
            assert comm.wished(STOP)


def traffic() -> None:
    """Payload is counted once; between hosts on their first ranks alone."""
    n, scalars = 1000, 2
    whole = 4 * (n + DIGITS * scalars + FLAGS)
    few = {
        "bf16": 2 * (n + (DIGITS + 1) * scalars + FLAGS),
        "fp16": 2 * (n + 1 + (DIGITS + 1) * scalars + FLAGS),
        "int8": 16 * 66 + 2 * ((DIGITS + 1) * scalars + FLAGS),
        "int4": 8 * 68 + 2 * ((DIGITS + 1) * scalars + FLAGS),
    }
    for number, comm in enumerate(comms()):
        hierarchical = number > 0
        first = hierarchical and comm.local_rank == 0
        crosses = hierarchical and comm.parts > 1
        assert comm.takes_part == (first or not hierarchical)
        for compress in ERROR:
            message = message_for(compress, n, scalars, CPU, comm)
            assert isinstance(message, CompressedMessage) == (compress != "none" and comm.parts > 1)
            before = vars(comm.traffic).copy()
            comm.sum_message(message, (1.0, 2.0))
            sent = {key: value - before[key] for key, value in vars(comm.traffic).items()}
            assert (sent["vector_allreduces"], sent["scalar_allreduces"]) == (1, 0)
            packed = compress != "none" and comm.parts > 1
            assert sent["bytes_allreduced"] == (
                few[compress] if packed and not hierarchical else whole
            )
            between = few[compress] if packed else whole
            assert sent["bytes_between_hosts"] == (between if first and crosses else 0)


def other_operations() -> None:
    """Maxima, agreement and texts are as ever where joining is hierarchical."""
    for comm in comms():
        numbers = np.array([float(comm.rank), -float(comm.rank)])
        comm.maximum(numbers)
        assert numbers.tolist() == [comm.size - 1, 0]
        assert comm.broadcast_text(f"of {comm.rank}", root=comm.size - 1) == f"of {comm.size - 1}"
        comm.agree(None)


def device_memory() -> None:
    """Sums are right from a buffer that is no NumPy array; CPU memory stands in for a GPU's."""
    for comm in comms():
        comm.gpu_aware = True
        message = message_for("none", 100, 2, CPU, comm)
        assert isinstance(message, DeviceMessage)
        comm.wish(STOP)
        for _ in range(2):
            message.vector.fill_(comm.rank + 1.0)
            sums = comm.sum_message(message, (0.1, 2.0**60), (0.1, 0.0))
            assert sums[1] == comm.size * 2.0**60
            assert abs(sums[0] - 0.2 * comm.size) < 1e-14 * comm.size
            assert bool((message.vector == comm.size * (comm.size + 1) / 2).all())
            assert comm.wished(STOP)
            comm.wish(STOP)


def gpu_aware_falls_back() -> None:
    """All ranks stage where one has to, and tell the same line."""
    comm = Comm()
    said: list[str] = []

    def ask() -> int:
        return int(comm.rank != comm.size - 1)

    for device, reason in ((CPU, "rank 0"), (torch.device("cuda"), f"rank {comm.size - 1}")):
        assert not gpu_aware.enable(comm, device, said.append, ask=ask, environment={})
        assert not comm.gpu_aware
        assert said[-1].startswith(f"messages go by the host: {reason} on ")
    comm.require_same("lines", said)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test part of the digits, scaled to 0 to 1."""
    source = load_source("digits")
    x, test = (
        torch.from_numpy(part).float().flatten(1) / 16 for part in (source.x_train, source.x_test)
    )
    return x, torch.from_numpy(source.y_train), test, torch.from_numpy(source.y_test)


def network(seed: int) -> nn.Module:
    """Of the digits."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def loss_of(module: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """Mean cross-entropy."""
    return lambda: F.cross_entropy(module(x), y)


def minibatch(closure: Callable[[], Tensor], samples: int) -> tuple[Callable[[], Tensor], int]:
    """The same one every time."""
    return closure, samples


def stochastic(comm: Comm, compress: str, seed: int, iterations: int) -> float:
    """Share of the test digits that are told right after so many iterations."""
    x, y, test, right = digits()
    module = network(seed)
    apts = Stochastic(module.parameters(), comm=comm, local_steps=5, compress=compress)
    random = np.random.default_rng((seed, comm.rank))
    own = np.arange(comm.rank, len(x), comm.size)

    def batches() -> tuple[Callable[[], Tensor], int]:
        index = torch.from_numpy(random.choice(own, 64 // comm.size))
        return lambda: F.cross_entropy(module(x[index]), y[index]), len(index)

    for _ in range(iterations):
        apts.step(batches)
    comm.check_replicas(apts.flat.vector)
    with apts.averaged(), torch.no_grad():
        return float((module(test).argmax(dim=1) == right).float().mean())


def trained_as_well() -> None:
    """Compressed corrections train to the accuracy of float32's, within its noise over seeds."""
    comm = Comm()
    found = {
        compress: [stochastic(comm, compress, seed, 30) for seed in range(2)] for compress in ERROR
    }
    if comm.rank == 0:
        print(found, flush=True)
    plain = np.array(found["none"])
    assert plain.min() > 0.85, found
    for compress in COMPRESSED:
        # 1 percent of the 360 digits is three to four of them.
        assert abs(np.mean(found[compress]) - plain.mean()) < max(0.01, 2 * plain.std()), found


def deterministic_as_well() -> None:
    """The method as published goes down as far with its corrections compressed."""
    comm = Comm()
    x, y, _, _ = digits()
    part = slice(comm.rank, 400, comm.size)
    losses = {}
    for compress in ("bf16", "int4"):
        module = network(0)
        apts = Deterministic(
            module.parameters(), comm=comm, local_solver="first-order", compress=compress
        )
        closure = loss_of(module, x[part], y[part])
        samples = len(y[part])
        for _ in range(20):
            losses[compress] = apts.step(closure, samples=samples, same_batch=True).loss
        comm.check_replicas(apts.flat.vector)
    assert all(loss < 1e-3 for loss in losses.values()), losses


def restored() -> None:
    """A run that resumes from its states continues bit for bit, residuals with it."""
    comm = Comm()
    x, y, _, _ = digits()
    index = torch.arange(comm.rank, 200, comm.size)
    for compress in ("bf16", "int4"):
        runs = []
        for seed in (0, 1):
            module = network(seed)
            apts = Stochastic(module.parameters(), comm=comm, local_steps=3, compress=compress)
            closure = loss_of(module, x[index], y[index])
            runs.append((apts, partial(minibatch, closure, len(index))))
        (first, batches), (second, others) = runs
        for _ in range(5):
            first.step(batches)
        state = first.state_dict()
        assert float(state["lost"]["vector"].abs().max()) > 0.0
        second.load_state_dict(state)
        second.flat.vector.copy_(first.flat.vector)
        for _ in range(3):
            first.step(batches)
            second.step(others)
        assert torch.equal(first.flat.vector, second.flat.vector)
        second.load_state_dict(state, resized=True)
        assert float(second.state_dict()["lost"]["vector"].abs().max()) == 0.0


def rejected() -> None:
    """A rejected correction leaves the residuals as they were."""
    comm = Comm()
    x, y, _, _ = digits()
    index = torch.arange(comm.rank, 200, comm.size)
    module, spoil = network(0), [1.0]
    apts = Stochastic(module.parameters(), comm=comm, local_steps=3, compress="fp16")
    draws = [0]

    def batches() -> tuple[Callable[[], Tensor], int]:
        draws[0] += 1
        factor = (
            spoil[0] if draws[0] == 3 else 1.0
        )  # the control batch, where the gradient is known
        start = apts.flat.vector.clone()

        def closure() -> Tensor:
            loss = F.cross_entropy(module(x[index]), y[index])
            return loss if torch.equal(apts.flat.vector, start) else loss * factor

        return closure, len(index)

    for _ in range(4):
        draws[0] = 0
        assert apts.step(batches).accepted
    before = apts.state_dict()["lost"]
    spoil[0], draws[0] = 1000.0, 0
    assert not apts.step(batches).accepted
    after = apts.state_dict()["lost"]
    assert all(torch.equal(before[name], after[name]) for name in before)

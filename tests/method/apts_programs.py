"""What the tests of APTS run on every rank: ``mpirun -n N python programs.py apts.NAME``.

Each function asserts on every rank; a failed assertion ends the job with its traceback, as an
error in the program itself would.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.message import FusedMessage
from apts_mpi.errors import AgreedError
from tests.method.driving import Deterministic
from tests.method.problem import SAMPLES, closure_over, data, network, own_communicator, uneven_part


def first_order_consistency() -> None:
    """Consistency terms sum to zero; the local objective's gradient is g, equal on all ranks."""
    comm = Comm()
    x, y = data()
    part = uneven_part(comm)
    module = network()
    apts = Deterministic(module.parameters(), comm=comm)
    apts.step(closure_over(module, x[part], y[part]), samples=part.stop - part.start)
    closure = closure_over(module, x[part], y[part])
    seen: dict[str, Tensor] = {}
    run = apts._subdomains[0].solver.run

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen["q"], seen["shift"] = kwargs["gradient"].clone(), kwargs["shift"].clone()
        return run(*args, **kwargs)

    apts._subdomains[0].solver.run = spy  # type: ignore[method-assign]
    before = apts.flat.vector.clone()
    apts.step(closure, samples=part.stop - part.start)
    weight = (part.stop - part.start) / SAMPLES

    joined = FusedMessage(apts.flat.n, 1)
    joined.vector.copy_(seen["shift"] * weight)
    comm.sum_message(joined, ())
    assert float(joined.vector.abs().max()) < 1e-6 * max(1.0, float(seen["shift"].abs().max()))

    comm.check_replicas(seen["q"])  # bit for bit the same
    everything = network()
    nn.utils.vector_to_parameters(before, everything.parameters())
    F.cross_entropy(everything(x), y).backward()
    full = torch.cat([p.grad.flatten() for p in everything.parameters() if p.grad is not None])
    assert torch.allclose(seen["q"], full, atol=1e-6), "g is not the gradient over all samples"


def weighted_loss() -> None:
    """f over uneven parts is the mean over all samples, and the same on every rank."""
    comm = Comm()
    x, y = data()
    part = uneven_part(comm)
    module = network()
    apts = Deterministic(module.parameters(), comm=comm, global_step=False)
    result = apts.step(closure_over(module, x[part], y[part]), samples=part.stop - part.start)
    with torch.no_grad():
        assert abs(float(F.cross_entropy(module(x), y)) - result.loss) < 1e-6
    comm.check_replicas(apts.flat.vector)
    comm.check_replicas(torch.tensor([result.loss, result.rho, result.radius]))


def identical_data() -> None:
    """N ranks with the same samples do what one rank does."""
    comm = Comm()
    x, y = data()
    for solver, norm in (("sr1", "2"), ("first-order", "2"), ("first-order", "inf")):
        results = []
        for ranks in (comm, Comm(own_communicator())):
            module = network()
            apts = Deterministic(
                module.parameters(), comm=ranks, local_solver=solver, norm=norm, radius=0.1
            )
            for _ in range(3):
                apts.step(closure_over(module, x, y), samples=SAMPLES, same_batch=True)
            results.append(apts.flat.vector.clone())
        many, one = results
        assert torch.allclose(many, one, atol=2e-4), float((many - one).abs().max())


def radius_bounds_correction() -> None:
    """|s| <= Delta however corrections join, taken or not, with uneven parts."""
    comm = Comm()
    x, y = data()
    part = uneven_part(comm)
    joins = ("sum", "average", "adaptive")
    variants = [("sr1", "2", join) for join in joins]
    variants += [("first-order", norm, join) for norm in ("2", "inf") for join in joins]
    for solver, norm, join in variants:
        module = network()
        apts = Deterministic(
            module.parameters(),
            comm=comm,
            local_solver=solver,
            norm=norm,
            join=join,
            global_step=False,
            radius=0.02,
            momentum=0.9,
        )
        longest = 0.0
        for _ in range(4):
            radius = apts.radius
            apts.step(closure_over(module, x[part], y[part]), samples=part.stop - part.start)
            s = apts.state_dict()["step"].double()
            length = float(s.abs().max() if norm == "inf" else s.norm()) / radius
            assert length <= 1 + 1e-5, (solver, norm, join, length)
            longest = max(longest, length)
        assert longest > 0.2, "the radius was never near"


def message_counts() -> None:
    """Messages of an outer iteration are those of the table in apts.py, vectors + scalars."""
    comm = Comm()
    x, y = data()
    part = uneven_part(comm)
    wanted = {  # (global step, consistency): (minibatch, full)
        (True, True): ((3, 1), (3, 0)),
        (True, False): ((3, 1), (3, 0)),
        (False, True): ((2, 1), (2, 0)),
        (False, False): ((1, 2), (1, 1)),
    }
    for solver in ("first-order", "sr1"):
        for (global_step, consistency), counts in wanted.items():
            for full in (False, True):
                module = network()
                apts = Deterministic(
                    module.parameters(),
                    comm=comm,
                    local_solver=solver,
                    global_step=global_step,
                    consistency=consistency,
                    radius=0.05,
                )
                closure = closure_over(module, x[part], y[part])
                for k in range(4):
                    before = comm.traffic.vector_allreduces, comm.traffic.scalar_allreduces
                    apts.step(closure, samples=part.stop - part.start, same_batch=full)
                    after = comm.traffic.vector_allreduces, comm.traffic.scalar_allreduces
                    sent = after[0] - before[0], after[1] - before[1]
                    if k or not full:  # the first full iteration evaluates theta_0 as well
                        assert sent == counts[full], (solver, global_step, consistency, full, sent)


def lone_non_finite_trial() -> None:
    """A trial loss that is not finite on one rank alone is rejected by all, bit for bit."""
    comm = Comm()
    x, y = data()
    part = uneven_part(comm)
    module = network()
    apts = Deterministic(module.parameters(), comm=comm, radius=0.1, global_step=False)
    before = apts.flat.vector.clone()
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        loss = F.cross_entropy(module(x[part]), y[part])
        # The first call is theta_k; on the last rank every other one fails.
        return loss * torch.inf if calls > 1 and comm.rank == comm.size - 1 else loss

    result = apts.step(closure, samples=part.stop - part.start)
    assert not result.accepted
    assert torch.equal(apts.flat.vector, before)
    assert apts.radius < 0.1


def rank_without_samples() -> None:
    """A rank whose batch is empty takes part in every message and changes nothing."""
    comm = Comm()
    x, y = data()
    n = 0 if comm.rank == 0 else SAMPLES
    for join in ("sum", "average", "adaptive"):
        module = network()
        apts = Deterministic(module.parameters(), comm=comm, join=join)
        closure = closure_over(module, x[:n], y[:n])
        losses = [apts.step(closure, samples=n).loss for _ in range(5)]
        assert losses[-1] < losses[0]
        comm.check_replicas(apts.flat.vector)


def first_batch_empty() -> None:
    """A rank whose first batch is empty joins in with the second."""
    comm = Comm()
    x, y = data()
    for solver in ("first-order", "sr1"):
        for join in ("sum", "average", "adaptive"):
            module = network()
            apts = Deterministic(module.parameters(), comm=comm, local_solver=solver, join=join)
            for k in range(4):
                n = 0 if comm.rank == 0 and k == 0 else SAMPLES
                result = apts.step(closure_over(module, x[:n], y[:n]), samples=n)
            assert result.local_tried >= comm.size, "a rank does not take part"
            assert apts._subdomains[0].radius > 0


def restored_ranks() -> None:
    """Every rank loads its own state, and the run goes on bit for bit; another's is refused."""
    comm = Comm()
    x, y = data()
    part = uneven_part(comm)
    for solver, global_step, consistency in (
        ("sr1", True, True),
        ("first-order", False, True),
        ("first-order", False, False),
    ):

        def build(
            module: nn.Module,
            solver: str = solver,
            global_step: bool = global_step,
            consistency: bool = consistency,
        ) -> Deterministic:
            return Deterministic(
                module.parameters(),
                comm=comm,
                local_solver=solver,
                global_step=global_step,
                consistency=consistency,
            )

        def go(apts: Deterministic, module: nn.Module) -> None:
            closure = closure_over(module, x[part], y[part])
            for _ in range(3):
                apts.step(closure, samples=part.stop - part.start)

        one, two = network(), network(seed=1)
        first, second = build(one), build(two)
        go(first, one)
        second.load_state_dict(first.state_dict())
        second.flat.vector.copy_(first.flat.vector)
        sent = comm.traffic.vector_allreduces
        go(first, one)
        middle = comm.traffic.vector_allreduces
        go(second, two)
        assert torch.equal(first.flat.vector, second.flat.vector)
        assert comm.traffic.vector_allreduces - middle == middle - sent
        state = first.state_dict()
        state["options"]["rank"] += 1
        try:
            second.load_state_dict(state)
        except ValueError as error:
            assert "rank" in str(error)
        else:
            raise AssertionError("another rank's state was taken")


def different_networks() -> None:
    """Ranks whose networks differ are told so before any message of that length is sent."""
    comm = Comm()
    module = nn.Linear(6, 3 + (comm.rank == 1))
    try:
        Deterministic(module.parameters(), comm=comm)
    except AgreedError as caught:
        assert "rank 1" in str(caught)
        assert "(4, 6)" in str(caught)
    else:
        raise AssertionError("no error was raised")


def raising_rank() -> None:
    """Rank 1 fails inside an evaluation while the others wait for its message."""
    comm = Comm()
    x, y = data()
    module = network()
    apts = Deterministic(module.parameters(), comm=comm)

    def closure() -> Tensor:
        if comm.rank == 1:
            raise ZeroDivisionError("planted")
        return F.cross_entropy(module(x), y)

    apts.step(closure, samples=SAMPLES)

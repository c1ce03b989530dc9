"""The classes in an ordinary loop: the program's own iteration, minibatch by minibatch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from apts_mpi import APTS, Comm, StochasticAPTS
from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.stochastic import StochasticMethod
from apts_mpi.trust_region.objective import Batch
from tests.method.driving import Deterministic
from tests.method.looping import (
    STEPS,
    X,
    Y,
    loss_of,
    made,
    minibatches,
    network,
    saved,
    theta,
    trained,
)

# ---- equal to the engine -------------------------------------------------------------------------


def engine(net: nn.Module, indices: Iterator[Tensor], iterations: int, **options: Any) -> Tensor:
    """Where the program's own iteration leads on the same minibatches."""
    flat = FlatParameters(net.parameters())
    method = StochasticMethod(flat, comm=Comm(), local_steps=STEPS, **options)

    def draw() -> Batch:
        index = next(indices)

        def objective(with_gradient: bool) -> float:
            if not with_gradient:
                with torch.no_grad():
                    return float(loss_of(net, index))
            loss = loss_of(net, index)
            flat.backward(loss)
            return float(loss.detach())

        return objective, len(index)

    for _ in range(iterations):
        method.iterate(draw)
    return flat.vector.clone()


def calling_backward(optimizer: StochasticAPTS, net: nn.Module, index: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = loss_of(net, index)
    loss.backward()
    return loss


@pytest.mark.parametrize("backward", [False, True])
def test_a_loop_of_steps_is_the_programs_iteration_bit_for_bit(backward: bool) -> None:
    net, other, indices = network(), network(), minibatches(40)
    optimizer = made(net)
    for index in indices:
        closure = partial(loss_of, net, index)
        if backward:
            closure = partial(calling_backward, optimizer, net, index)
        optimizer.step(closure, samples=len(index))
        if optimizer.iterations == 9:
            break
    assert torch.equal(theta(net), engine(other, iter(indices), 9))
    last = optimizer.last_iteration
    assert last is not None
    assert last.radius == optimizer.radius


def test_samples_are_given_in_every_step_or_in_none() -> None:
    optimizer = made(network())
    optimizer.step(lambda: theta_sum(optimizer))
    with pytest.raises(ValueError, match="give samples in every step, or in none"):
        optimizer.step(lambda: theta_sum(optimizer), samples=4)


def theta_sum(optimizer: StochasticAPTS) -> Tensor:
    return torch.stack([(p * p).sum() for g in optimizer.param_groups for p in g["params"]]).sum()


def test_chunks_of_a_minibatch_are_the_minibatch_within_rounding() -> None:
    whole, cut = network(), network()
    one, other = made(whole), made(cut)
    for i in minibatches(15):
        one.step(partial(loss_of, whole, i), samples=len(i))
        chunks = [partial(loss_of, cut, c) for c in i.split(6)]
        other.step(chunks, samples=[len(c) for c in i.split(6)])
    assert torch.allclose(theta(whole), theta(cut), atol=1e-4)
    assert one.last_iteration is not None
    assert other.last_iteration is not None
    assert one.last_iteration.accepted == other.last_iteration.accepted


def test_a_closure_is_called_within_its_step_alone_and_sees_one_mask() -> None:
    net, calls = network(dropout=0.5), list[list[float]]()
    optimizer = made(net)
    for k, index in enumerate(minibatches(12)):
        calls.append([])

        def closure() -> Tensor:
            assert len(calls) == k + 1  # noqa: B023
            out = net(X[index])  # noqa: B023
            calls[k].append(float((net[:3](X[:1]) == 0.0).float().sum()))  # noqa: B023
            return cross_entropy(out, Y[index])  # noqa: B023

        optimizer.step(closure)
    counts = [len(each) for each in calls]
    assert counts[0] > 3, "the first radius"
    assert sorted(set(counts[1:])) == [1, 2]
    assert counts[3] == 2, "a control batch"
    assert all(len(set(each)) == 1 for each in calls)


def test_the_loss_returned_is_the_first_that_the_closure_gave() -> None:
    net, losses = network(), list[float]()
    optimizer = made(net)

    def closure(index: Tensor) -> Tensor:
        losses.append(float(loss_of(net, index).detach()))
        return loss_of(net, index)

    for index in minibatches(9):
        losses.clear()
        loss = optimizer.step(partial(closure, index))
        assert loss.shape == ()
        assert not loss.requires_grad
        assert float(loss) == losses[0]
    fresh = made(network())
    fresh.step(lambda: theta_sum(fresh))
    assert fresh.step(lambda: pytest.fail("called"), samples=0).isnan()


# ---- settings ------------------------------------------------------------------------------------


def test_groups_have_their_own_decay_and_scale() -> None:
    def moved(*groups: dict[str, Any], **options: Any) -> Tensor:
        net = network()
        before, parts = theta(net), [list(net[0].parameters()), list(net[3].parameters())]
        given = [{"params": p, **g} for p, g in zip(parts, groups, strict=True)]
        optimizer = made(net, given, local_steps=1, radius=1e-4, momentum=0.0, **options)
        trained(optimizer, net, minibatches(2))
        assert optimizer.iterations == 1
        return theta(net) - before

    first = 48  # parameters
    plain = moved({}, {})
    half = moved({}, {"radius_scale": 0.5})
    assert torch.equal(half[:first], plain[:first])
    assert torch.allclose(half[first:], 0.5 * plain[first:], atol=1e-7)
    start = theta(network())
    decayed = moved({"weight_decay": 100.0}, {}, weight_decay=10.0)
    wanted = plain - 1e-4 * torch.cat([100.0 * start[:first], 10.0 * start[first:]])
    assert torch.allclose(decayed, wanted, atol=1e-6)
    for bad in ({"weight_decay": -1.0}, {"radius_scale": 0.0}, {"radius_scale": "x"}):
        with pytest.raises((ValueError, TypeError), match=f"{next(iter(bad))} .*parameter group"):
            moved({}, bad)


def test_a_groups_settings_may_change_between_iterations() -> None:
    nets = [network(), network()]
    for net, later in zip(nets, (0.0, 50.0), strict=True):
        optimizer = made(net)
        trained(optimizer, net, minibatches(4))
        optimizer.param_groups[0]["weight_decay"] = later
        trained(optimizer, net, minibatches(3, seed=1))
        assert optimizer.iterations == 2
    assert float(theta(nets[1]).norm()) < float(theta(nets[0]).norm())
    optimizer.param_groups[0]["weight_decay"] = -1
    with pytest.raises(ValueError, match="weight_decay -1 of a parameter group must be at least 0"):
        trained(optimizer, nets[1], minibatches(1))


def test_named_parameters_and_tied_weights_are_taken() -> None:
    net = network()
    net.append(nn.Linear(3, 3))
    net.append(nn.Linear(3, 3))
    net[5].weight = net[4].weight
    optimizer = made(net, net.named_parameters())
    assert optimizer.param_groups[0]["param_names"][0] == "0.weight"
    losses = trained(optimizer, net, minibatches(120))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert net[5].weight is net[4].weight


def test_the_length_of_the_run_shortens_its_last_steps(caplog: pytest.LogCaptureFixture) -> None:
    ends = {}
    for steps in (None, 31):
        net = network()
        optimizer = made(net, steps=steps, radius=1e-3)
        trained(optimizer, net, minibatches(28))
        before = theta(net)
        trained(optimizer, net, minibatches(3, seed=1))
        ends[steps] = float((theta(net) - before).abs().max())
    assert ends[31] < 0.7 * ends[None]
    assert not caplog.records
    trained(optimizer, net, minibatches(4, seed=2))
    assert "all 31 steps are done" in caplog.text
    with pytest.raises(ValueError, match="steps 0 must be at least 1"):
        made(net, steps=0)


# ---- a real loop ---------------------------------------------------------------------------------


def test_a_loader_with_workers_and_an_uneven_end_trains_batch_norm() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True, num_workers=2)
    optimizer = made(net, steps=6 * len(loader), weight_decay=0.01)
    losses = []
    for _ in range(6):
        for x, y in loader:
            loss = optimizer.step(lambda: cross_entropy(net(x), y), samples=len(x))  # noqa: B023
            losses.append(loss.item())
    with optimizer.averaged(net, loader):
        net.eval()
        accuracy = float((net(X).argmax(1) == Y).float().mean())
    assert accuracy > 0.8, (accuracy, losses)


def test_a_loss_computed_before_the_step_is_refused_with_the_remedy() -> None:
    net = network()
    optimizer, loss = made(net), loss_of(net, minibatches(1)[0])
    loss.backward()
    with pytest.raises(RuntimeError, match="compute it within the closure"):
        optimizer.step(lambda: loss)


def test_settings_that_are_no_numbers_are_refused_by_their_names() -> None:
    with pytest.raises(TypeError, match="steps is a float: give the number of minibatches"):
        made(network(), steps=1.5)
    with pytest.raises(TypeError, match=r"weight_decay is nothing \(None\): give a number"):
        made(network(), weight_decay=None)


def test_an_error_of_a_closure_leaves_the_loop_fit_to_continue() -> None:
    net = network()
    optimizer = made(net)
    trained(optimizer, net, minibatches(5))

    def broken() -> Tensor:
        raise ValueError("a bad sample")

    with pytest.raises(ValueError, match="a bad sample"):
        optimizer.step(broken, samples=3)
    losses = trained(optimizer, net, minibatches(30, seed=1))
    assert losses[-1] < losses[0]


# ---- the method as published ---------------------------------------------------------------------


def test_apts_is_the_published_iteration_bit_for_bit() -> None:
    net, other = network(), network()
    optimizer, method = APTS(net.named_parameters()), Deterministic(other.parameters())
    for index in minibatches(4):
        loss = optimizer.step(partial(loss_of, net, index), samples=len(index))
        done = method.step(partial(loss_of, other, index), samples=len(index))
        assert repr(optimizer.last_iteration) == repr(done)
        assert float(loss) >= done.loss
    assert torch.equal(theta(net), theta(other))
    resumed = APTS(other.parameters())
    resumed.load_state_dict(saved(optimizer))
    for each, which in ((optimizer, net), (resumed, other)):
        each.step(partial(loss_of, which, minibatches(5)[4]), samples=5)
    assert torch.equal(theta(net), theta(other))
    with pytest.raises(TypeError, match="a parameter group takes no weight_decay"):
        APTS([{"params": network().parameters(), "weight_decay": 0.1}])


def test_apts_trains_what_is_unfrozen() -> None:
    net = network()
    net[0].requires_grad_(False)
    optimizer = APTS(net.parameters())
    index = minibatches(1)[0]
    for _ in range(3):
        optimizer.step(partial(loss_of, net, index), same_batch=True)
    before, radius = theta(net)[:48], optimizer.radius
    net[0].requires_grad_(True)
    losses = [float(optimizer.step(partial(loss_of, net, index))) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert radius > 0.0
    assert not torch.equal(theta(net)[:48], before)

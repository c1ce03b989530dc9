"""The classes in a loop whose parameters change; their state, and what is evaluated."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.method.looping import X, Y, loss_of, made, minibatches, network, saved, theta, trained

# ---- the parameters change -----------------------------------------------------------------------


def test_layers_unfreeze_and_freeze_amid_training() -> None:
    net = network()
    net[0].requires_grad_(False)
    optimizer = made(net)
    before = theta(net)
    trained(optimizer, net, minibatches(6))
    assert torch.equal(theta(net)[:48], before[:48])
    radius, done = optimizer.radius, optimizer.iterations
    head = optimizer.state_dict()["state"][2]["average"]
    net[0].requires_grad_(True)
    trained(optimizer, net, minibatches(1, seed=1))
    state = optimizer.state_dict()
    assert set(state["state"]) == {0, 1, 2, 3}
    assert optimizer.iterations == done
    assert optimizer.radius == radius
    assert torch.equal(state["state"][2]["average"], head)
    trained(optimizer, net, minibatches(9, seed=2))
    assert not torch.equal(theta(net)[:48], before[:48])
    net[3].requires_grad_(False)
    kept = theta(net)[48:]
    trained(optimizer, net, minibatches(1, seed=3))
    kept = theta(net)[48:].clone()  # the iterate, which an abandoned iteration returns to
    trained(optimizer, net, minibatches(8, seed=4))
    assert torch.equal(theta(net)[48:], kept)


def test_a_group_is_added() -> None:
    net = network()
    optimizer = made(net, net[3].parameters(), weight_decay=0.5)
    trained(optimizer, net, minibatches(6))
    before = theta(net)[:48]
    optimizer.add_param_group({"params": net[0].parameters(), "radius_scale": 0.1})
    losses = trained(optimizer, net, minibatches(40, seed=1))
    assert not torch.equal(theta(net)[:48], before)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert optimizer.param_groups[1]["weight_decay"] == 0.5
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [net[0].weight]})


def test_added_parameters_join_averages_that_stay_as_they_are() -> None:
    net = network()
    optimizer = made(net, net[3].parameters(), local_solver="scaled")
    trained(optimizer, net, minibatches(7))
    assert optimizer._method is not None
    metric = optimizer._method._subdomains[0].solver.metric
    m = metric.m / (1.0 - 0.9**metric.learned)
    optimizer.add_param_group({"params": net[0].parameters()})
    metric = optimizer._method._subdomains[0].solver.metric
    assert metric.learned == 1
    assert torch.allclose(metric.m[: len(m)] / (1.0 - 0.9), m, rtol=1e-4)
    assert not metric.m[len(m) :].any()


def test_a_module_that_was_moved_is_refused() -> None:
    net = network()
    optimizer = made(net)
    net.double().float()
    with pytest.raises(RuntimeError, match="move the module first"):
        trained(optimizer, net, minibatches(1))


def test_gradients_changed_between_steps_are_not_used_and_clipping_does_no_harm() -> None:
    kept, clipped = network(), network()
    for net in (kept, clipped):
        optimizer = made(net)
        for i in minibatches(60):
            optimizer.step(partial(loss_of, net, i))
            if net is clipped:
                nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    assert optimizer.iterations == 15, "an iteration begins with a minibatch of its own"
    with torch.no_grad():
        losses = [float(cross_entropy(net(X), Y)) for net in (kept, clipped)]
    assert losses[1] < 2.0 * losses[0] + 0.1


# ---- evaluation and state ------------------------------------------------------------------------


def test_the_average_is_there_wherever_the_loop_ends(caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    optimizer = made(net)
    trained(optimizer, net, minibatches(2))
    with optimizer.averaged():
        pass
    assert "no outer iteration is complete after 2 steps" in caplog.text
    trained(optimizer, net, minibatches(10, seed=1))
    before = theta(net)
    with optimizer.averaged():
        assert not torch.equal(theta(net), before)
        saved = optimizer.state_dict()["state"][0]["iterate"]
        assert not torch.equal(saved, theta(net)[:40].view(8, 5))
        with pytest.raises(RuntimeError, match=r"averaged\(\) within averaged\(\)"):
            optimizer.averaged().__enter__()
        with pytest.raises(RuntimeError, match=r"a step within averaged\(\): leave it"):
            optimizer.step(lambda: loss_of(net, minibatches(1)[0]), samples=1)
    assert torch.equal(theta(net), before)


@pytest.mark.parametrize("solver", ["scaled", "spectral"])
def test_a_state_through_a_file_continues_bit_for_bit(solver: str) -> None:
    net, other = network(), network(seed=1)
    groups = [[{"params": n[0].parameters()}, {"params": n[3].parameters()}] for n in (net, other)]
    optimizer = made(net, groups[0], local_solver=solver, steps=50)
    optimizer.param_groups[1]["weight_decay"] = 0.3
    trained(optimizer, net, minibatches(13))
    assert optimizer._method is not None
    assert not optimizer._method.in_progress
    resumed = made(other, groups[1], local_solver=solver, steps=50)
    resumed.load_state_dict(saved(optimizer))
    assert torch.equal(theta(net), theta(other)), "the iterate is in the state"
    one, two = (trained(o, n, minibatches(11, 1)) for o, n in ((optimizer, net), (resumed, other)))
    assert one == two
    assert torch.equal(theta(net), theta(other))


def test_a_state_saved_amid_an_iteration_resumes_from_its_iterate() -> None:
    net, other = network(), network(seed=1)
    optimizer, resumed = made(net), made(other)
    trained(optimizer, net, minibatches(13))
    iterate = theta(net)
    trained(optimizer, net, minibatches(2, seed=1))
    resumed.load_state_dict(saved(optimizer))
    assert torch.equal(theta(other), iterate)
    losses = trained(resumed, other, minibatches(40, seed=2))
    assert losses[-1] < losses[0]


def test_a_state_that_does_not_fit_is_refused() -> None:
    optimizer = made(network())
    state = optimizer.state_dict()
    wide = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3))
    with pytest.raises(ValueError, match=r"parameter 0 has shape \(8, 5\), not \(9, 5\)"):
        made(wide).load_state_dict(state)
    with pytest.raises(ValueError, match=r"groups of \[4\] parameters, not of \[2\]"):
        made(nn.Linear(5, 3)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"the state has local_steps 3, not 4"):
        made(network(), local_steps=4).load_state_dict(state)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_copy_is_refused_with_the_remedy(copied: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"neither copied nor pickled: .* state_dict\(\)"):
        copied(made(network()))

"""The classes as people of torch and mpi4py call them: they work, or a line says what to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi import APTS, Comm, StochasticAPTS
from tests.method.driving import Deterministic

X, Y = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2


def module() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def half() -> list[Tensor]:
    return [*nn.Linear(2, 2).parameters(), *nn.Linear(2, 2).half().parameters()]


def twice() -> list[Tensor]:
    return [*(net := nn.Linear(2, 2)).parameters(), net.weight]


def used_up() -> Any:
    given = module().parameters()
    list(given)
    return given


def frozen() -> list[Tensor]:
    return [each.requires_grad_(False) for each in module().parameters()]


GIVEN: dict[str, tuple[Callable[[], Any], str]] = {
    "module": (module, r"params is a Linear: give module\.parameters\(\)"),
    "state": (lambda: module().state_dict(), "parameter 0 is a str"),
    "half named": (lambda: [("w", module().weight), module().bias], "give all or none"),
    "group of lr": (
        lambda: [{"params": module().parameters(), "lr": 1.0}],
        "a parameter group takes no lr: there is no learning rate",
    ),
    "no group": (lambda: [{"parameters": []}], "give a dict with params"),
    "tensor": (lambda: module().weight, "params is a Parameter"),
    "none": (lambda: None, "params is a NoneType"),
    "numbers": (lambda: [1.0], "parameter 0 is a float"),
    "half": (half, r"are torch\.float16: train them in float32"),
    "double": (lambda: nn.Linear(2, 2).double().parameters(), r"torch\.float64"),
    "meta": (lambda: nn.Linear(2, 2, device="meta").parameters(), "are on meta"),
    "two devices": (
        lambda: [*module().parameters(), *nn.Linear(2, 2, device="meta").parameters()],
        "on cpu and meta: move the module to one",
    ),
    "lazy": (lambda: nn.LazyLinear(2).parameters(), "has no shape yet"),
    "twice": (twice, "given twice"),
    "used up": (used_up, "a generator is empty when used up"),
    "frozen": (frozen, "none of them requires a gradient"),
    "computed": (lambda: [2.0 * module().weight], "is computed from others"),
}


@pytest.mark.parametrize("kind", [StochasticAPTS, APTS])
@pytest.mark.parametrize("name", GIVEN)
def test_parameters_are_taken_or_told(name: str, kind: type) -> None:
    give, line = GIVEN[name]
    with pytest.raises((TypeError, ValueError), match=line) as caught:
        kind(give())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [StochasticAPTS, APTS])
def test_a_communicator_of_mpi4py_is_taken(kind: type) -> None:
    for comm in (None, MPI.COMM_WORLD, MPI.COMM_SELF, Comm(MPI.COMM_SELF)):
        assert kind(module().parameters(), comm=comm).comm.size == 1
    with pytest.raises(TypeError, match="comm is int '3': give a communicator"):
        kind(module().parameters(), comm=3)
    with pytest.raises(ValueError, match="COMM_NULL"):
        kind(module().parameters(), comm=MPI.COMM_NULL)


def stochastic(closure: Callable[[nn.Module], Any], **samples: Any) -> None:
    net = module()
    made = StochasticAPTS(net.parameters(), local_steps=2)
    for _ in range(4):
        made.zero_grad()
        made.step(partial(closure, net), **samples)


def deterministic(closure: Callable[[nn.Module], Any], **samples: Any) -> None:
    net = module()
    made = APTS(net.parameters())
    for _ in range(2):
        made.zero_grad(set_to_none=True)
        made.step(partial(closure, net), **samples)


def broken(net: nn.Module) -> Tensor:
    raise RuntimeError("of my own")


Given = Callable[[nn.Module], Any]
WRONG: dict[str, tuple[Given, str]] = {
    "item": (lambda m: cross_entropy(m(X), Y).item(), r"a float.*without \.item\(\)"),
    "nothing": (lambda m: None, r"nothing \(None\).*return loss"),
    "a pair": (lambda m: (cross_entropy(m(X), Y), m(X)), "a tuple.*give samples to step itself"),
    "no mean": (lambda m: cross_entropy(m(X), Y, reduction="none"), r"of shape \(30,\)"),
    "complex": (lambda m: m(X).sum() * 1j, "torch.complex64"),
    "detached": (lambda m: cross_entropy(m(X), Y).detach(), "does not depend on the parameters"),
    "broken": (broken, "of my own"),
    "another module's": (lambda m: cross_entropy(module()(X), Y), "does not depend on the param"),
}


@pytest.mark.parametrize("step", [stochastic, deterministic])
@pytest.mark.parametrize("name", WRONG)
def test_a_closure_gives_the_mean_loss_or_is_told(name: str, step: Callable[..., None]) -> None:
    closure, line = WRONG[name]
    with pytest.raises((TypeError, ValueError, RuntimeError), match=line) as caught:
        step(closure)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("step", [stochastic, deterministic])
def test_samples_are_a_whole_number(step: Callable[..., None]) -> None:
    def closure(net: nn.Module) -> Tensor:
        return cross_entropy(net(X), Y)

    for samples in (30, np.int64(30), torch.tensor(30), [30]):
        step(closure, samples=samples)
    for bad, line in ((30.0, "is a float"), (X, "a tensor of shape"), ([None], "is nothing")):
        with pytest.raises(TypeError, match=f"samples .*{line}.*whole number"):
            step(closure, samples=bad)
    with pytest.raises(ValueError, match="samples -1 is negative"):
        step(closure, samples=-1)
    with pytest.raises(ValueError, match="samples has 2 numbers for 1 closures: give one for each"):
        step(closure, samples=[15, 15])


@pytest.mark.parametrize("kind", [StochasticAPTS, APTS])
def test_a_step_is_given_a_closure_or_told(kind: Any) -> None:
    net = module()
    made = kind(net.parameters())
    wants = "give a closure that returns the mean loss of the minibatch"
    with pytest.raises(TypeError, match=rf"step is given nothing \(None\): {wants}"):
        made.step()
    with pytest.raises(TypeError, match=rf"step is given a tensor of shape \(\): {wants}"):
        made.step(cross_entropy(net(X), Y))
    with pytest.raises(TypeError, match=f"step is given no closures: {wants}"):
        made.step([])


@pytest.mark.parametrize("kind", [StochasticAPTS, APTS])
def test_a_learning_rate_is_neither_read_nor_scheduled(kind: type) -> None:
    made: Any = kind(module().parameters())
    schedulers = torch.optim.lr_scheduler
    for use in (
        lambda: schedulers.StepLR(made, 1),
        lambda: schedulers.OneCycleLR(made, max_lr=0.1, total_steps=3),
        lambda: schedulers.ReduceLROnPlateau(made),
        lambda: schedulers.LambdaLR(made, lambda epoch: 1.0),
        lambda: made.param_groups[0]["lr"],
        lambda: made.param_groups[0].update(lr=0.1) or made.param_groups[0].__setitem__("lr", 1.0),
    ):
        with pytest.raises(KeyError, match="no learning rate to set or schedule") as caught:
            use()
        assert "\\n" not in str(caught.value)
    assert kind.__name__ in repr(made)


def test_a_gradient_scaler_is_refused_with_the_remedy() -> None:
    net = module()
    made = StochasticAPTS(net.parameters())
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(cross_entropy(net(X), Y)).backward()
    with pytest.raises(RuntimeError, match=r"no GradScaler: .*autocast with bfloat16"):
        scaler.step(made)
    loss: Any = torch.amp.GradScaler("cpu", enabled=False).step(
        made, lambda: cross_entropy(net(X), Y)
    )
    assert loss > 0.0


@pytest.mark.parametrize("kind", [StochasticAPTS, APTS])
def test_a_state_of_another_optimizer_is_told(kind: type) -> None:
    net = module()
    made = kind(net.parameters())
    made.load_state_dict(made.state_dict())
    for state in ({}, torch.optim.Adam(net.parameters()).state_dict(), None):
        with pytest.raises(ValueError, match="the state is of another optimizer: load what"):
            made.load_state_dict(state)


@pytest.mark.parametrize("kind", [StochasticAPTS, APTS])
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"lr": 0.1}, "takes no lr: there is no learning rate to set"),
        ({"subdomains": 2}, "takes no subdomains: a rank has one in a loop of your own"),
        ({"betas": (0.9, 0.99)}, "takes no betas"),
        ({"local_steps": 2.5}, "local_steps is a float: give a whole number"),
        ({"local_steps": "auto"}, "local_steps is a str: give a whole number"),
        ({"radius": "x"}, "radius is a str: give a positive number"),
        ({"comm": "x"}, "comm is str 'x': give a communicator of mpi4py"),
    ],
)
def test_arguments_that_are_none_are_refused(
    kind: type, arguments: dict[str, Any], line: str
) -> None:
    with pytest.raises(TypeError, match=line):
        kind(module().parameters(), **arguments)


def test_what_is_no_argument_by_position_and_no_switch() -> None:
    kind: Any = StochasticAPTS
    with pytest.raises(TypeError, match="takes params alone by position"):
        kind(module().parameters(), 0.1)
    with pytest.raises(TypeError, match="shared is a str: give True or False"):
        StochasticAPTS(module().parameters(), shared="off")
    with pytest.raises(TypeError, match="consistency is an int: give True or False"):
        APTS(module().parameters(), consistency=1)


@pytest.mark.parametrize("given", ["x", 0, Comm()])
def test_a_communicator_that_is_none_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="give a communicator of mpi4py"):
        Comm(given)
    with pytest.raises(ValueError, match="COMM_NULL"):
        Comm(MPI.COMM_NULL)


@pytest.mark.parametrize("kind", [StochasticAPTS, APTS])
def test_a_state_that_is_not_whole_is_refused(kind: type) -> None:
    made = kind(module().parameters())
    state = made.state_dict()
    del state["method"]["radius"]
    with pytest.raises(ValueError, match="the state lacks 'radius'"):
        made.load_state_dict(state)


def test_a_parameter_that_was_replaced_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    made = StochasticAPTS(net.parameters(), local_steps=2)
    net[2] = nn.Linear(3, 2)  # a new head, as for other classes
    for _ in range(5):
        made.step(lambda: cross_entropy(net(X), Y))
    (told,) = [record.getMessage() for record in caplog.records]
    assert "parameter 2 of shape (2, 3) got no gradient, nor did 1 more" in told


@pytest.mark.parametrize("kind", [StochasticAPTS, APTS])
def test_help_has_a_summary_and_a_body(kind: type) -> None:
    summary, _, body = (inspect.getdoc(kind) or "").partition("\n\n")
    assert summary.endswith(".")
    assert "\n" not in summary
    assert body.startswith("Args:\n    params: ")


@pytest.mark.parametrize("kind", [StochasticAPTS, APTS])
def test_a_class_of_a_users_own_has_the_arguments_of_its_parent(kind: Any) -> None:
    class Mine(kind):
        pass

    assert Mine(module().parameters(), radius=0.25).radius == 0.25
    with pytest.raises(TypeError, match="Mine takes no lr"):
        Mine(module().parameters(), lr=0.1)


def test_nothing_is_drawn_for_another_number_of_subdomains() -> None:
    with pytest.raises(ValueError, match="batches of 2 subdomains, not 1"):
        Deterministic(module().parameters()).iterate(pytest.fail, pytest.fail)

"""Parameters and gradients as vectors: views that share storage with the module's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi.method.closures import ClosureObjective
from apts_mpi.method.flat import FlatParameters
from apts_mpi.networks.seeding import Generators
from tests.method.small_net import concatenated, module, plain_gradient, samples


def test_the_vector_keeps_the_values_and_shares_the_parameters_storage() -> None:
    net = module()
    before = [p.detach().clone() for p in net.parameters()]
    flat = FlatParameters(net.parameters())
    assert flat.n == sum(p.numel() for p in before)
    assert torch.equal(flat.vector, concatenated(before))
    for p, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, old)
        assert p.shape == old.shape
    flat.vector.mul_(2.0)
    assert torch.equal(net.first.weight, 2 * before[0])
    with torch.no_grad():
        net.last.bias.fill_(7.0)
    assert flat.vector[-3:].tolist() == [7.0, 7.0, 7.0]
    net.load_state_dict(module(5).state_dict())
    flat.check_views()
    assert torch.equal(flat.vector, concatenated(module(5).parameters()))


def test_moved_or_replaced_parameters_are_told() -> None:
    net = module()
    flat = FlatParameters(net.parameters())
    flat.check_views()
    net.double()
    net.float()
    with pytest.raises(RuntimeError, match="parameters were replaced"):
        flat.check_views()
    net = module()
    flat = FlatParameters(net.parameters())
    net.last.bias.data = torch.zeros(3)
    with pytest.raises(RuntimeError, match="move the module first"):
        flat.check_views()


def test_a_transposed_parameter_keeps_its_values() -> None:
    p = nn.Parameter(torch.arange(6.0).view(2, 3).t())
    flat = FlatParameters([p])
    assert p.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    flat.vector[1] = 9.0
    assert p[0].tolist() == [0.0, 9.0]


def test_other_than_float32_and_nothing_to_train_are_refused() -> None:
    net = module()
    net.last.double()
    with pytest.raises(ValueError, match=r"float32 on one device.*torch.float32.*torch.float64"):
        FlatParameters(net.parameters())
    with pytest.raises(ValueError, match=r"float32.*torch.bfloat16"):
        FlatParameters(module().bfloat16().parameters())
    with pytest.raises(ValueError, match="no parameters that require a gradient"):
        FlatParameters(module().requires_grad_(False).parameters())
    with pytest.raises(ValueError, match="no parameters"):
        FlatParameters([])


# ---- closures over a scalar loss, as torch's optimizers take them --------------------------------


def quadratic() -> tuple[nn.Parameter, FlatParameters]:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    return parameter, FlatParameters([parameter])


def test_a_closure_gives_its_loss_and_only_where_wanted_its_gradient() -> None:
    parameter, flat = quadratic()
    graphs: list[bool] = []

    def closure() -> Tensor:
        loss = (parameter**2).sum()
        graphs.append(loss.requires_grad)
        return loss

    objective = ClosureObjective(flat, [closure])
    for _ in range(2):  # the second one does not add to the first
        assert float(objective(True)) == 14.0
        assert flat.gradient.tolist() == [2.0, -4.0, 6.0]
    flat.vector.mul_(2.0)
    with torch.no_grad():
        assert float(objective(True)) == 56.0
    assert flat.gradient.tolist() == [4.0, -8.0, 12.0]
    flat.vector.zero_()
    assert objective(False) == 0.0
    assert graphs == [True, True, True, False]


def goes_back(parameter: nn.Parameter, ends: Callable[[Tensor], Any]) -> Callable[[], Any]:
    """A closure as LBFGS wants it, and what it returns."""

    def closure() -> Any:
        parameter.grad = None
        loss = (parameter**2).sum()
        loss.backward()
        return ends(loss)

    return closure


@pytest.mark.parametrize("ends", [lambda loss: loss, Tensor.detach, Tensor.item])
def test_a_closure_may_call_backward_itself(ends: Callable[[Tensor], Any]) -> None:
    parameter, flat = quadratic()
    objective = ClosureObjective(flat, [goes_back(parameter, ends)])
    for _ in range(2):
        assert float(objective(True)) == 14.0
        assert flat.gradient.tolist() == [2.0, -4.0, 6.0]
    flat.vector.zero_()
    assert float(objective(False)) == 0.0
    assert flat.gradient.tolist() == [2.0, -4.0, 6.0], "a loss alone leaves it"


def test_a_graph_that_is_kept_is_gone_back_through_once() -> None:
    parameter, flat = quadratic()

    def closure() -> Tensor:
        loss = parameter.sum()  # without saved tensors
        loss.backward()
        return loss

    ClosureObjective(flat, [closure])(True)
    assert flat.gradient.tolist() == [1.0, 1.0, 1.0]


def test_the_first_loss_alone_of_a_closure_with_backward_draws_as_any() -> None:
    parameter, flat = quadratic()
    draws = list[float]()

    def closure() -> Tensor:
        draws.append(float(torch.rand(())))
        loss = (parameter * draws[-1]).sum()
        loss.backward()
        return loss

    objective = ClosureObjective(flat, [closure], generators=Generators(torch.device("cpu")))
    loss = objective(False)
    assert len(set(draws)) == 1
    assert loss == pytest.approx(2.0 * draws[0])


@pytest.mark.parametrize("with_gradient", [True, False])
def test_chunks_of_a_minibatch_weigh_by_their_samples(with_gradient: bool) -> None:
    net, (x, y) = module(), samples()
    flat = FlatParameters(net.parameters())
    cuts = (slice(0, 3), slice(3, 4), slice(4, len(x)))
    chunks = [lambda s=s: cross_entropy(net(x[s]), y[s]) for s in cuts]
    weights = [len(y[s]) / len(y) for s in cuts]
    loss = float(ClosureObjective(flat, chunks, weights)(with_gradient))
    assert loss == pytest.approx(float(cross_entropy(net(x), y)), rel=1e-5)
    if with_gradient:
        assert torch.allclose(flat.gradient, plain_gradient(net, x, y), rtol=1e-4, atol=1e-6)


def test_a_closure_that_does_not_depend_on_the_parameters_is_refused() -> None:
    _, flat = quadratic()
    with pytest.raises(RuntimeError, match="loss does not depend on the parameters"):
        ClosureObjective(flat, [lambda: torch.tensor(1.0)])(True)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_closure_may_zero_the_modules_gradients(set_to_none: bool) -> None:
    net, (x, y) = module(), samples()
    flat = FlatParameters(net.parameters())

    def closure() -> Tensor:
        net.zero_grad(set_to_none=set_to_none)
        return cross_entropy(net(x), y)

    for _ in range(2):
        ClosureObjective(flat, [closure])(True)
        assert torch.allclose(flat.gradient, plain_gradient(net, x, y), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("before", [1.0, -3.0])
def test_a_parameter_the_loss_does_not_depend_on_has_no_gradient(before: float) -> None:
    net = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(2, 2)})
    flat = FlatParameters(net.parameters())
    flat.gradient.fill_(before)
    x, y = samples()
    flat.backward(cross_entropy(net["used"](x), y))
    assert flat.gradient[:15].any()
    assert not flat.gradient[15:].any()
    flat.check_views()
    assert all(p.grad is not None for p in net.parameters())


def test_a_loss_that_fails_leaves_the_gradients_attached() -> None:
    net, (x, y) = module(), samples()
    flat = FlatParameters(net.parameters())
    loss = cross_entropy(net(x), y)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        flat.backward(loss)
    assert all(p.grad is not None for p in net.parameters())
    flat.backward(cross_entropy(net(x), y))
    assert torch.allclose(flat.gradient, plain_gradient(net, x, y), rtol=1e-5, atol=1e-7)

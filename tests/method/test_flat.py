"""Parameters and gradients as vectors: views that share storage with the module's own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi.method.flat import FlatParameters, closure_objective
from apts_mpi.networks import Task
from apts_mpi.networks.losses import criterion
from apts_mpi.training.flat_network import FlatNetwork
from tests.devices import DEVICE

torch.set_num_threads(1)

PLAIN = criterion(Task("classification", (3,), 3))


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, reduction="none")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.first(x).tanh())
        return outputs


def module(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def samples(count: int = 23) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(1)
    x = torch.randn(count, 4, generator=generator)
    return x, torch.randint(0, 3, (count,), generator=generator)


def concatenated(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def plain_gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """By autograd on an untouched copy, one pass, torch's own mean."""
    twin = copy.deepcopy(net)
    for p in twin.parameters():
        p.grad = None
    cross_entropy(twin(x), y).backward()
    return concatenated(p.grad for p in twin.parameters() if p.grad is not None)


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


def test_the_gradient_is_the_plain_autograd_gradient() -> None:
    net, (x, y) = module(), samples()
    network = FlatNetwork(net, losses)
    for _ in range(2):  # the second one does not add to the first
        value = network.loss_and_gradient(x, y)
        assert torch.allclose(network.gradient, plain_gradient(net, x, y), rtol=1e-5, atol=1e-7)
    assert value == pytest.approx(float(cross_entropy(net(x), y).detach()), rel=1e-6)
    assert network.loss(x, y) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 5, 22, 23, 100])
def test_chunks_change_the_loss_and_its_gradient_by_rounding_only(
    chunk: int,
) -> None:
    net, (x, y) = module(), samples()
    network = FlatNetwork(net, losses)
    whole, gradient = network.loss_and_gradient(x, y), network.gradient.clone()
    sizes: list[int] = []
    net.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    network.chunk = chunk
    assert network.loss_and_gradient(x, y) == pytest.approx(whole, rel=1e-6)
    assert torch.allclose(network.gradient, gradient, rtol=1e-5, atol=1e-7)
    assert sum(sizes) == len(x)
    assert max(sizes) <= chunk
    assert min(sizes) > 1 or chunk == 1, "BatchNorm cannot take one sample alone"
    assert network.loss(x, y) == pytest.approx(whole, rel=1e-6)


def test_evaluation_counts_the_samples_whose_largest_output_is_their_label() -> None:
    net = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.eye(3))
    x = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0], [9.0, 0, 0]])
    total, correct = FlatNetwork(net, losses).evaluate(
        [(x[:3], torch.tensor([0, 1, 1])), (x[3:], torch.tensor([2]))], PLAIN
    )
    assert correct == 2
    right = float(losses(x[:1], torch.tensor([0]))[0])
    assert total == pytest.approx(2 * right + 2 * (right + 9.0), rel=1e-5)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_of_the_module_is_survived(set_to_none: bool) -> None:
    net, (x, y) = module(), samples()
    network = FlatNetwork(net, losses)
    network.loss_and_gradient(x, y)
    expected = network.gradient.clone()
    net.zero_grad(set_to_none=set_to_none)
    network.loss_and_gradient(x, y)
    assert expected.any()
    assert torch.equal(network.gradient, expected)
    seen = [p.grad for p in net.parameters() if p.grad is not None]
    assert torch.equal(concatenated(seen), expected)


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


def test_no_piece_of_one_sample_is_left_to_batch_norm() -> None:
    for count, chunk in ((23, 22), (23, 11), (3, 2), (23, 2), (2, 1), (23, 1)):
        net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        network, (x, y) = FlatNetwork(net, losses, chunk=chunk), samples(count)
        assert math.isfinite(network.loss_and_gradient(x, y))
        assert math.isfinite(network.loss(x, y))


def test_tokens_reach_the_network_as_int64_however_they_are_held() -> None:
    seen: list[torch.dtype] = []
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 3))
    net.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].dtype))
    network = FlatNetwork(net, losses)
    for dtype in (torch.uint8, torch.uint16, torch.int32, torch.int64):
        network.loss_and_gradient(torch.zeros(4, 2, dtype=dtype), torch.zeros(4).long())
    assert seen == [torch.int64] * 4


def test_outputs_of_several_parts_are_all_float32_in_bf16() -> None:
    class Several(Net):
        def forward(self, x: Tensor) -> Any:
            outputs = self.first(x)
            return {"logits": self.last(outputs), "pair": (outputs, len(x))}

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        total: Tensor = outputs["pair"][0].sum(1)
        return total

    network = FlatNetwork(Several(), loss, autocast=True)
    x, y = samples()
    found: Any = network.outputs(x)
    assert found["logits"].dtype == found["pair"][0].dtype == torch.float32
    assert found["pair"][1] == len(x)
    assert math.isfinite(network.loss_and_gradient(x, y))


def test_frozen_parameters_are_left_out_and_left_alone() -> None:
    net, (x, y) = module(), samples()
    net.first.requires_grad_(False)
    frozen = net.first.weight.detach().clone()
    network = FlatNetwork(net, losses)
    assert network.n == 6 * 3 + 3
    network.loss_and_gradient(x, y)
    assert torch.allclose(network.gradient, plain_gradient(net, x, y), rtol=1e-5, atol=1e-7)
    network.vector.zero_()
    assert torch.equal(net.first.weight, frozen)
    assert net.first.weight.grad is None
    assert not net.last.weight.any()


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


# --- closures over a scalar loss, as torch's optimizers take them ---


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

    objective = closure_objective(flat, closure)
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


def test_a_closure_that_calls_backward_itself_is_refused_with_the_remedy() -> None:
    parameter, flat = quadratic()

    def closure() -> Tensor:
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=r"return the loss and leave backward\(\)"):
        closure_objective(flat, closure)(True)


def test_a_closures_own_backward_adds_nothing_where_autograd_allows_two() -> None:
    parameter, flat = quadratic()

    def closure() -> Tensor:
        loss = parameter.sum()  # a graph without saved tensors
        loss.backward()
        return loss

    try:
        closure_objective(flat, closure)(True)
    except RuntimeError as error:
        assert "backward" in str(error)
    else:
        assert flat.gradient.tolist() == [1.0, 1.0, 1.0]


def test_a_closure_that_does_not_depend_on_the_parameters_is_refused() -> None:
    _, flat = quadratic()
    with pytest.raises(RuntimeError, match="loss does not depend on the parameters"):
        closure_objective(flat, lambda: torch.tensor(1.0))(True)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_closure_may_zero_the_modules_gradients(set_to_none: bool) -> None:
    net, (x, y) = module(), samples()
    flat = FlatParameters(net.parameters())

    def closure() -> Tensor:
        net.zero_grad(set_to_none=set_to_none)
        return cross_entropy(net(x), y)

    for _ in range(2):
        closure_objective(flat, closure)(True)
        assert torch.allclose(flat.gradient, plain_gradient(net, x, y), rtol=1e-5, atol=1e-7)


def test_in_bf16_the_network_rounds_and_nothing_else_does() -> None:
    net, (x, y) = module(), samples()
    seen: list[torch.dtype] = []
    net.last.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    exact, rounded = FlatNetwork(net, losses), FlatNetwork(net, losses, autocast=True)
    whole, gradient = exact.loss_and_gradient(x, y), exact.gradient.clone()
    loss = rounded.loss_and_gradient(x, y)
    assert seen == [torch.float32, torch.bfloat16]
    assert {t.dtype for t in (rounded.vector, rounded.gradient, rounded.outputs(x))} == {
        torch.float32
    }
    assert whole != loss == pytest.approx(whole, rel=0.02)
    gap = torch.linalg.vector_norm(rounded.gradient - gradient)
    assert 0.0 < gap < 0.05 * torch.linalg.vector_norm(gradient)
    rounded.vector.mul_(2.0)  # seen at once: no rounded copy of the parameters is kept
    assert rounded.loss(x, y) != loss


def test_a_compiled_network_is_what_torch_made_of_the_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, (x, y) = module(), samples()
    asked: list[nn.Module] = []

    def compiler(given: nn.Module) -> Callable[[Tensor], Tensor]:
        asked.append(given)
        return lambda x: 2.0 * given(x)

    monkeypatch.setattr(torch, "compile", compiler)
    network = FlatNetwork(net, losses, compiled=True)
    assert asked == [net]
    with torch.no_grad():
        doubled, once = (float(losses(factor * net(x), y).mean()) for factor in (2.0, 1.0))
    assert doubled != pytest.approx(once, rel=1e-3)
    assert torch.equal(network.outputs(x), 2.0 * net(x))
    assert network.loss(x, y) == pytest.approx(doubled, rel=1e-5)
    assert network.loss_and_gradient(x, y) == pytest.approx(doubled, rel=1e-5)


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


def test_sparse_gradients_and_batches_of_no_samples() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    net = nn.Sequential(embedding, nn.Flatten(), nn.Linear(4, 3))
    dense = copy.deepcopy(net)
    dense[0] = nn.Embedding.from_pretrained(embedding.weight.detach().clone(), freeze=False)
    x, y = torch.tensor([[0, 3], [3, 3]]), torch.tensor([0, 2])
    networks = [FlatNetwork(each, losses) for each in (net, dense)]
    for network in networks:
        network.gradient.fill_(7.0)
        network.loss_and_gradient(x, y)
    assert torch.equal(networks[0].gradient, networks[1].gradient)
    assert networks[0].loss_and_gradient(x[:0], y[:0]) == 0.0
    assert not networks[0].gradient.any()


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

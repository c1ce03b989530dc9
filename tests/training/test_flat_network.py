"""A network with its loss over samples: gradients, chunks, bfloat16, compiled code."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from apts_mpi.networks.losses import criterion
from apts_mpi.networks.task import Task
from apts_mpi.training.flat_network import FlatNetwork
from tests.method.small_net import Net, concatenated, losses, module, plain_gradient, samples

PLAIN = criterion(Task("classification", (3,), 3))


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

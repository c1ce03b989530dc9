"""What each parameter of a network is: hidden matrix, embedding, output layer, or vector."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apts_mpi.method.flat import FlatParameters
from apts_mpi.method.layers import layers
from apts_mpi.networks.named import build
from apts_mpi.networks.task import Task
from apts_mpi.training.flat_network import FlatNetwork

IMAGES, TEXT = Task("classification", (3, 8, 8), 10), Task("language", (16,), 65)
SMALL = {"depth": 1, "width": 32, "heads": 4}


def built(name: str, task: Task, **sizes: object) -> nn.Module:
    return build(name, task, sizes, seed=0)[0]


def kinds(module: nn.Module) -> dict[str, str]:
    """By the parameters' names, but for the vectors."""
    names = [name for name, _ in module.named_parameters()]
    found = layers(list(module.parameters()), module)
    return {name: each.kind for name, each in zip(names, found, strict=True) if each.columns > 1}


class Bare(nn.Module):
    """What no module type says: an output layer by a shared parameter, a norm of images."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm((5, 4))
        self.scale = nn.Parameter(torch.ones(()))
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight


def test_of_a_fully_connected_network_the_last_matrix_is_the_output() -> None:
    module = built("mlp", IMAGES, hidden=(12, 9))
    assert list(kinds(module).values()) == ["hidden", "hidden", "output"]


def test_convolutions_are_matrices_of_their_output_channels() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 5), nn.Flatten(), nn.Linear(8, 10))
    found = layers(list(module.parameters()), module)
    assert [(each.rows, each.columns) for each in found] == [(8, 75), (8, 1), (10, 8), (10, 1)]
    assert [each.kind for each in found] == ["hidden", "vector", "output", "vector"]


def test_convolutions_and_tokens_have_several_positions() -> None:
    networks = [
        built("mlp", IMAGES, hidden=(12, 9)),
        built("resnet", IMAGES, depth=8, width=8, normalization="group"),
        built("transformer", TEXT, **SMALL, tied=False),
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)),
        nn.LSTM(8, 8),
        nn.TransformerEncoderLayer(8, 2, 16),
    ]
    found = [{each.positions for each in layers(list(m.parameters()), m)} for m in networks]
    assert found == [{False}, {True}, {True}, {False}, {True}, {True}]


def test_of_a_resnet_all_convolutions_are_hidden() -> None:
    found = kinds(built("resnet", IMAGES, depth=8, width=8, normalization="group"))
    *before, last = found.values()
    assert set(before) == {"hidden"}
    assert last == "output"


def test_of_a_transformer_embeddings_and_output_are_their_own() -> None:
    found = kinds(built("transformer", TEXT, **SMALL, tied=False))
    others = {name: kind for name, kind in found.items() if kind != "hidden"}
    tables = {"tokens.weight": "embedding", "positions.weight": "embedding"}
    assert others == {**tables, "output.weight": "output"}
    assert len(found) == 3 + 4


@pytest.mark.parametrize("module", [built("transformer", TEXT, **SMALL, tied=True), Bare()])
def test_a_tied_output_is_an_embedding_and_no_other_layer_is_the_output(module: nn.Module) -> None:
    assert set(kinds(module).values()) == {"hidden", "embedding"}
    assert list(kinds(module).values())[-1] == "hidden"


def test_a_norm_of_several_dimensions_and_a_single_number_are_vectors() -> None:
    module = Bare()
    names = [name for name, _ in module.named_parameters()]
    found = dict(zip(names, layers(list(module.parameters()), module), strict=True))
    for name, numbers in (("norm.weight", 20), ("norm.bias", 20), ("scale", 1)):
        each = found[name]
        assert (each.kind, each.rows, each.columns) == ("vector", numbers, 1)


def test_a_frozen_last_layer_is_the_output_still() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3))
    module[2].requires_grad_(False)
    found = layers([p for p in module.parameters() if p.requires_grad], module)
    assert [each.kind for each in found] == ["hidden", "vector", "hidden", "vector"]


def test_without_the_module_the_first_of_the_last_ones_shape_is_an_embedding() -> None:
    def known(*shapes: tuple[int, ...]) -> list[str]:
        return [each.kind for each in layers([torch.zeros(shape) for shape in shapes])]

    assert known((65, 8), (8, 8), (8,), (65, 8)) == ["embedding", "hidden", "vector", "output"]
    assert known((12, 6), (12,), (3, 12)) == ["hidden", "vector", "output"]
    assert known((6, 6), (6, 6)) == ["hidden", "output"]


def test_they_are_views_of_the_flat_vector() -> None:
    module = built("transformer", TEXT, **SMALL, tied=False)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    network = FlatNetwork(module, loss)
    for each, p in zip(network.layers(), module.parameters(), strict=True):
        assert torch.equal(each.of(network.vector).flatten(), p.detach().flatten())
    assert [each.kind for each in network.layers()] != [
        each.kind for each in FlatParameters(module.parameters()).layers()
    ], "the positions' table is known by its module alone"

"""The stochastic method with spectral local steps, and the cooldown of their length."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apts_mpi.trust_region.metric import SPECTRAL
from tests.method.driving import Stochastic

torch.set_num_threads(1)


def network() -> nn.Sequential:
    """With one hidden matrix, (12, 6)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


def batches(module: nn.Module) -> Callable[[], tuple[Callable[[], Tensor], int]]:
    """Minibatches of a problem that can be learned."""
    x = torch.randn(400, 6)
    y = (x @ torch.randn(6, 3)).argmax(1)

    def give() -> tuple[Callable[[], Tensor], int]:
        chosen = torch.randint(0, len(x), (32,))
        return lambda: nn.functional.cross_entropy(module(x[chosen]), y[chosen]), 32

    return give


@pytest.mark.parametrize("subdomains", [1, 2])
def test_it_learns(subdomains: int) -> None:
    module = network()
    optimizer = Stochastic(module.parameters(), local_steps=5, subdomains=subdomains)
    give = batches(module)
    first = optimizer.step(*[give] * subdomains).loss
    for _ in range(40):
        optimizer.step(*[give] * subdomains)
    with optimizer.averaged(), torch.no_grad():
        found = [float(give()[0]()) for _ in range(20)]
    assert sum(found) / 20.0 < 0.3 * first


def moved(**options: float) -> list[Tensor]:
    """The changes of the parameters in the first iteration, of one local step."""
    module = network()
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = Stochastic(
        module.parameters(), local_steps=1, radius=1e-4, momentum=0.0, cooldown=0.5
    )
    optimizer.done = options.get("done", 0.0)
    assert optimizer.step(batches(module)).accepted
    return [p.detach() - q for p, q in zip(module.parameters(), before, strict=True)]


def test_the_hidden_matrix_alone_moves_by_a_polar_factor() -> None:
    hidden, *others = moved()
    singular = torch.linalg.svdvals(hidden) / (1e-4 * SPECTRAL * math.sqrt(12))
    assert bool(((singular > 0.5) & (singular < 1.25)).all())
    for each in others:  # the first step of the diagonal metric is along the signs
        assert torch.allclose(each.abs(), torch.full_like(each, 1e-4), rtol=2e-2)


@pytest.mark.parametrize("many", [False, True])
def test_large_matrices_move_by_blocks_where_they_see_a_sample_once(many: bool) -> None:
    """One with three dimensions counts as applied to many positions: it moves as a whole."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 140), torch.randint(0, 3, (32,))
    first = nn.Parameter(0.05 * torch.randn(140, 130, *[1] * many))
    last = nn.Parameter(0.05 * torch.randn(3, 130))
    before = first.detach().clone()
    optimizer = Stochastic([first, last], local_steps=1, radius=1e-5, momentum=0.0, cooldown=0.0)

    def loss() -> Tensor:
        return nn.functional.cross_entropy((x @ first.view(140, 130)).tanh() @ last.T, y)

    assert optimizer.step(lambda: (loss, 32)).accepted
    p = (first.detach() - before).view(140, 130) / (1e-5 * SPECTRAL * math.sqrt(140))
    blocks = torch.linalg.matrix_norm(torch.stack(p.tensor_split(2, dim=1)), 2)
    assert float(blocks.max()) < 1.2
    assert (float(torch.linalg.matrix_norm(p, 2)) < 1.2) == many  # of few ranks, blocks add up


@pytest.mark.parametrize(("done", "length"), [(0.0, 1.0), (0.5, 1.0), (0.75, 0.5), (0.9, 0.2)])
def test_steps_shorten_over_the_last_part_of_the_run(done: float, length: float) -> None:
    for first, later in zip(moved(), moved(done=done), strict=True):
        assert torch.allclose(later, length * first, rtol=0.05, atol=1e-7)


def test_the_path_of_a_classifiers_iterations_is_bounded_more_closely() -> None:
    radii = {}
    for classification in (False, True):
        module = network()
        size = float(torch.linalg.matrix_norm(next(module.parameters()).detach(), 2))
        optimizer = Stochastic(module.parameters(), local_steps=5, classification=classification)
        give = batches(module)
        radii[classification] = [optimizer.step(give).radius for _ in range(12)]
        farthest = size / (5 * SPECTRAL * math.sqrt(12))  # an iteration as long as the matrix
        assert max(radii[classification]) <= 1.001 * farthest * (0.25 if classification else 1.0)
    assert radii[True][-1] < radii[False][-1]


def test_a_network_without_hidden_matrices_is_scaled_diagonally() -> None:
    states = []
    for solver in ("scaled", "spectral"):
        torch.manual_seed(0)
        module = nn.Linear(6, 3)
        optimizer = Stochastic(
            module.parameters(), local_solver=solver, local_steps=3, momentum=0.6
        )
        give = batches(module)
        for _ in range(3):
            optimizer.step(give)
        states.append(module.weight.detach())
    assert torch.equal(*states)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"local_solver": "sr1"}, "local_solver 'sr1' is none of"),
        ({"cooldown": 1.5}, r"cooldown 1.5 is outside \[0, 1\]"),
        ({"cooldown": math.nan}, r"cooldown nan is outside \[0, 1\]"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Stochastic(network().parameters(), **options)

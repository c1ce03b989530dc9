"""Networks by name: shapes, seeds, costs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apts_mpi.errors import InputError
from apts_mpi.networks import cost, named
from apts_mpi.networks.named import NETWORKS
from apts_mpi.networks.sizes import SIZES
from apts_mpi.networks.task import Task
from apts_mpi.settings.config import TrainConfig

torch.set_num_threads(1)
IMAGES = Task("classification", (3, 16, 16), 7)
GREY = Task("classification", (12, 10), 7)
TEXT = Task("language", (9,), 11)
NUMBERS = Task("regression", (5,), 2)
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (8,)},
    "cnn": {"channels": (4, 6), "hidden": (8,)},
    "resnet": {"depth": 8, "width": 4, "normalization": "group"},
    "transformer": {"depth": 2, "width": 8, "heads": 2, "tied": False},
}


def build(name: str, task: Task, seed: int = 0, **changes: Any) -> nn.Module:
    module, loss = named.build(name, task, {**SMALL[name], **changes}, seed=seed)
    assert loss is None
    return module


def inputs(task: Task, b: int = 3) -> Tensor:
    if task.kind == "language":
        return torch.randint(0, task.outputs, (b, *task.sample_shape), dtype=torch.uint8)
    return torch.randn(b, *task.sample_shape)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_every_network_of_the_settings_is_built() -> None:
    assert set(SIZES) == set(NETWORKS) == set(SMALL)
    for name, sizes in SIZES.items():
        task = TEXT if name == "transformer" else IMAGES
        module, _ = named.build(name, task, sizes, seed=0)
        assert TrainConfig(network=name).sizes == sizes
        assert module(inputs(task)).shape[-1] == task.outputs


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("mlp", IMAGES),
        ("mlp", NUMBERS),
        ("cnn", IMAGES),
        ("cnn", GREY),
        ("resnet", IMAGES),
        ("resnet", GREY),
        ("transformer", TEXT),
    ],
)
def test_shapes_and_one_seed(name: str, task: Task) -> None:
    torch.manual_seed(5)
    module, same, other = build(name, task), build(name, task), build(name, task, seed=1)
    before = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), before), "the seed of others is left alone"
    x = inputs(task)
    tokens = task.sample_shape if task.kind == "language" else ()
    assert module(x).shape == (3, *tokens, task.outputs)
    assert module(x).dtype == torch.float32
    for p, q in zip(module.parameters(), same.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not torch.equal(module(x), other(x))


def test_parameter_counts_by_formula() -> None:
    # He et al. 2015 tell 0.27 million for depth 20.
    sizes = {"depth": 20, "width": 16, "normalization": "group"}
    resnet, _ = named.build("resnet", Task("classification", (3, 32, 32), 10), sizes, seed=0)
    w, n = 16, 3
    convolutions = 27 * w + 9 * w * w * 2 * n
    for a, b in ((w, 2 * w), (2 * w, 4 * w)):
        convolutions += 9 * a * b + 9 * b * b * (2 * n - 1)
    normalizations = 2 * (w + 2 * n * (w + 2 * w + 4 * w))
    assert count(resnet) == convolutions + normalizations + (4 * w + 1) * 10
    assert 0.265e6 < count(resnet) < 0.275e6
    width, tokens, context, depth = 8, 11, 9, 2
    block = 12 * width * width + 13 * width
    whole = tokens * width + context * width + depth * block + 2 * width + width * tokens
    assert count(build("transformer", TEXT)) == whole
    assert count(build("transformer", TEXT, tied=True)) == whole - width * tokens


def test_flops_of_a_sample() -> None:
    assert cost.flops(build("mlp", NUMBERS), NUMBERS) == 2 * (5 * 8 + 8 * 2)
    convolutions = 12 * 10 * 4 * 9 + 6 * 5 * 6 * 4 * 9
    products = convolutions + 6 * 3 * 2 * 8 + 8 * 7
    assert cost.flops(build("cnn", GREY), GREY) == 2 * products
    width, t = 8, 9
    products = t * (2 * 12 * width * width + width * 11)
    attention = 2 * 2 * t * t * width  # scores and their sums, over all heads
    assert cost.flops(build("transformer", TEXT), TEXT) == 2 * (products + attention)
    assert cost.flops(nn.Linear(3, 3), IMAGES) is None


def test_a_run_does_not_wait_for_torchs_compiler() -> None:
    program = (
        "import sys; from apts_mpi.networks import cost, named;"
        "from apts_mpi.networks.task import Task;"
        "task = Task('classification', (4,), 3);"
        "module, _ = named.build('mlp', task, {'hidden': (5,)}, seed=0);"
        "assert cost.activations(module, task) == 4 + 5 + 5 + 3;"
        "assert 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=180, check=False)
    assert done.returncode == 0


def test_costs_need_no_memory_for_a_large_network() -> None:
    task = Task("classification", (3, 32, 32), 10)
    with torch.device("meta"):
        module, _ = named.build("mlp", task, {"hidden": (10**6, 10**6)}, seed=0)
    count = cost.flops(module, task)
    assert count is not None
    assert count > 2e12
    assert module.training


def test_a_token_sees_none_that_follow() -> None:
    module = build("transformer", TEXT)
    x = inputs(TEXT, 1)
    outputs = module(x)
    x[0, 5:] = (x[0, 5:] + 1) % 11
    changed = module(x)
    assert torch.allclose(outputs[0, :5], changed[0, :5], atol=1e-6)
    assert not torch.allclose(outputs[0, 5:], changed[0, 5:], atol=1e-3)


def test_attention_against_its_definition() -> None:
    blocks: Any = build("transformer", TEXT).blocks
    block, x = blocks[0], torch.randn(2, 9, 8)
    q, k, v = block.attention(block.norm1(x)).split(8, dim=2)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2.0
        scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(2) @ v[..., part])
    y = x + block.project(torch.cat(heads, 2))
    y = y + block.contract(nn.functional.gelu(block.expand(block.norm2(y))))
    assert torch.allclose(block(x), y, atol=1e-5)


def test_group_norm_lets_no_sample_see_another_and_batch_norm_does() -> None:
    x = inputs(IMAGES, 4)
    for kind, alone in (("group", True), ("none", True), ("batch", False)):
        module = build("resnet", IMAGES, normalization=kind)
        assert torch.allclose(module(x)[:1], module(x[:1]), atol=1e-4) == alone


@pytest.mark.parametrize(
    ("name", "task", "changes", "told"),
    [
        ("cnn", NUMBERS, {}, "needs images"),
        ("cnn", GREY, {"channels": (2, 2, 2, 2, 2)}, "leave nothing"),
        ("resnet", IMAGES, {"depth": 18}, "6n \\+ 2"),
        ("resnet", NUMBERS, {}, "needs images"),
        ("mlp", TEXT, {}, "--network transformer"),
        ("transformer", IMAGES, {}, "shard text"),
        ("transformer", TEXT, {"heads": 3}, "heads divide"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused(
    name: str, task: Task, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        build(name, task, **changes)


def test_sizes_that_a_network_does_not_have_are_refused() -> None:
    for settings, told in (
        ({"network": "perceptron"}, "must be mlp, cnn"),
        ({"network": "os.path"}, "package.module:function"),
        ({"network": "./os.py:path"}, "no .py in it"),
        (
            {"depth": 8},
            "--depth 8: has no effect with --network mlp, .* the sizes of mlp are --hidden",
        ),
        ({"network": "resnet", "hidden": (3,)}, "--hidden 3: has no effect with --network resnet"),
        ({"network": "a.b:c", "width": 3}, "set by its own function"),
        ({"network": "cnn", "channels": (0,)}, "--channels 0"),
    ):
        with pytest.raises(InputError, match=told):
            TrainConfig(**settings)

"""Networks by name: shapes, sizes against formulas, initialisation, costs, the user's own."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apts_mpi import networks
from apts_mpi.errors import InputError
from apts_mpi.networks import NETWORKS, Task
from apts_mpi.networks.sizes import SIZES
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
    module, loss = networks.build(name, task, {**SMALL[name], **changes}, seed=seed)
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
        module, _ = networks.build(name, task, sizes, seed=0)
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
    resnet, _ = networks.build("resnet", Task("classification", (3, 32, 32), 10), sizes, seed=0)
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
    assert networks.flops(build("mlp", NUMBERS), NUMBERS) == 2 * (5 * 8 + 8 * 2)
    convolutions = 12 * 10 * 4 * 9 + 6 * 5 * 6 * 4 * 9
    products = convolutions + 6 * 3 * 2 * 8 + 8 * 7
    assert networks.flops(build("cnn", GREY), GREY) == 2 * products
    width, t = 8, 9
    products = t * (2 * 12 * width * width + width * 11)
    attention = 2 * 2 * t * t * width  # scores and their sums, over all heads
    assert networks.flops(build("transformer", TEXT), TEXT) == 2 * (products + attention)
    assert networks.flops(nn.Linear(3, 3), IMAGES) is None


def test_a_run_does_not_wait_for_torchs_compiler() -> None:
    program = (
        "import sys; from apts_mpi import networks;"
        "task = networks.Task('classification', (4,), 3);"
        "module, _ = networks.build('mlp', task, {'hidden': (5,)}, seed=0);"
        "assert networks.activations(module, task) == 4 + 5 + 5 + 3;"
        "assert 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == 0


def test_costs_need_no_memory_for_a_large_network() -> None:
    task = Task("classification", (3, 32, 32), 10)
    with torch.device("meta"):
        module, _ = networks.build("mlp", task, {"hidden": (10**6, 10**6)}, seed=0)
    count = networks.flops(module, task)
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


OWN = """
from torch import nn

def network(task):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, task.outputs))

def with_loss(task):
    return network(task), lambda outputs, targets: outputs.square().sum(dim=1)

def wrong(task):
    return 3

def failing(task):
    raise KeyError("no such thing")

def one_too_many(task):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, task.outputs + 1))

def one_for_each_sample(task):
    module = nn.Sequential(nn.Flatten(), nn.Linear(768, 1), nn.Flatten(0))
    return module, lambda outputs, targets: (outputs - targets).square()

def too_narrow(task):
    return nn.Sequential(nn.Flatten(), nn.Linear(767, task.outputs))

def frozen(task):
    module = network(task)
    module.append(nn.BatchNorm1d(task.outputs).eval())
    return module

def leaving(task):
    raise SystemExit("usage: nothing")

constant = 5
"""


def test_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_of_a_user.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module, loss = networks.build("own_of_a_user:network", IMAGES, {}, seed=0)
    assert loss is None
    again, loss = networks.build("own_of_a_user:with_loss", IMAGES, {}, seed=0)
    assert loss is not None
    assert loss.answers
    _, loss = networks.build("own_of_a_user:one_for_each_sample", IMAGES, {}, seed=0)
    assert loss is not None
    assert not loss.answers
    kept, _ = networks.build("own_of_a_user:frozen", IMAGES, {}, seed=0)
    assert [part.training for part in kept.modules()] == [True, True, True, False]
    for p, q in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
    for name, told in (
        ("nowhere_to_be_found:network", "cannot be imported"),
        ("own_of_a_user:nothing", "no function nothing"),
        ("own_of_a_user:constant", "no function constant"),
        ("own_of_a_user:wrong", "gave int"),
        ("own_of_a_user:failing", "no such thing"),
        ("own_of_a_user:too_narrow", "fails on 2 samples of shape .* cannot be multiplied"),
        ("own_of_a_user:one_too_many", r"gave \(2, 8\) for 2 samples .* takes \(2, 7\)"),
        ("own_of_a_user:leaving", "SystemExit: usage"),
        ("own_of_a_user.py:network", "name the module, not its file: own_of_a_user:network"),
    ):
        with pytest.raises(InputError, match=told):
            networks.build(name, IMAGES, {}, seed=0)


ZOO = """
CALLS = []

def by_weights(*, weights=None, progress=True, **others):
    CALLS.append(weights)

def by_flag(pretrained=False, progress=True):
    CALLS.append(pretrained)

def by_name(model_name: str, pretrained: bool = False, **others):
    CALLS.append(model_name)

def by_text(which: "str | None" = None):
    CALLS.append(which)

def by_several(first, second):
    CALLS.append(first)

class Built:
    def __init__(self, num_classes=1000):
        CALLS.append(num_classes)
"""


def test_a_function_that_takes_no_task_is_never_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("torchvision", "timm"):  # none of them is even imported
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "zoo_of_others.py").write_text(ZOO, encoding="utf-8")
    own = "from zoo_of_others import by_flag\nfrom torch.nn import Identity as network\n"
    (tmp_path / "zoo_of_ones_own.py").write_text(own, encoding="utf-8")
    packages = tmp_path / "lib/site-packages"
    packages.mkdir(parents=True)
    installed = "def network(t):\n    raise SystemExit('called')\n"
    (packages / "zoo_installed.py").write_text(installed, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(packages)
    functions = ("by_weights", "by_flag", "by_name", "by_text", "by_several", "Built")
    for name in (
        *("torchvision.models:resnet18", "timm:create_model", "transformers:AutoModel"),
        *("torch.hub:load", "torch.nn:Linear", "zoo_of_ones_own:network", "json:loads"),
        *("zoo_of_ones_own:by_flag", "zoo_installed:network"),
        *(f"zoo_of_others:{function}" for function in functions),
    ):
        with pytest.raises(InputError, match=r"takes a task and calls it.*def network\(task\)"):
            networks.build(name, IMAGES, {}, seed=0)
    assert sys.modules["zoo_of_others"].CALLS == []


SEVERAL = """
import random
import numpy as np
import torch
from torch import nn
from apts_mpi.networks import Task

class Own(nn.Module):
    def __init__(self, task: Task, width: int = 5, pretrained: bool = False):
        super().__init__()
        self.numbers = random.random(), np.random.rand(), float(torch.rand(()))
        self.tokens = nn.Embedding(task.outputs, width)
        self.head = nn.LazyLinear(task.outputs)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.head(self.tokens(x))

def in_training(t: "Task"):
    class Failing(Own):
        def forward(self, x):
            if self.training:
                raise ValueError("only here")
            return super().forward(x)
    return Failing(t)

def too_small(task):
    module = Own(task)
    module.tokens = nn.Embedding(task.outputs - 1, 5)
    return module

def made(what):
    def network(task):
        module = Own(task)
        module.head = nn.Linear(5, task.outputs)
        what(module)
        return module
    return network

sparse = made(lambda m: m.register_buffer("odd", torch.eye(2).to_sparse()))
meta = made(lambda m: m.register_buffer("odd", torch.empty(2, device="meta")))
half = made(lambda m: m.head.bfloat16())
shared = made(lambda m: m.register_buffer("odd", m.head.bias.data[1:]))
frozen = made(lambda m: m.requires_grad_(False))
lines = made(lambda m: m.register_buffer("two\\nlines", torch.zeros(1)))
"""


def test_what_a_users_module_holds_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "several_of_a_user.py").write_text(SEVERAL, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    def draws() -> list[float]:
        return [random.random(), np.random.rand(), float(torch.rand(()))]

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    drawn = draws()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    first: Any = networks.build("several_of_a_user:Own", TEXT, {}, seed=2**40)[0]
    assert draws() == drawn, "the generators go on as if nothing had been built"
    second: Any = networks.build("several_of_a_user:Own", TEXT, {}, seed=2**40)[0]
    assert first.numbers == second.numbers
    assert torch.equal(first.head.weight, second.head.weight), "a lazy one is made by the seed too"
    assert first.calls == second.calls == 1, "what makes lazy ones; no trial leaves anything"
    for name, told in (
        ("in_training", r"several_of_a_user\.py:24, in forward: ValueError: only here"),
        ("too_small", "IndexError"),
        ("sparse", "its odd is sparse"),
        ("meta", "its odd is strided on meta"),
        ("half", r"its head\.weight is trained and bfloat16"),
        ("shared", r"its head\.bias and odd share memory"),
        ("lines", r"its 'two\\nlines' has a name that is not one line"),
        ("frozen", "no parameters that require a gradient"),
    ):
        with pytest.raises(InputError, match=told):
            networks.build(f"several_of_a_user:{name}", TEXT, {}, seed=0)


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

"""Networks of timm and torchvision, imitated, and their own where they are installed."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from apts_mpi.errors import InputError
from apts_mpi.networks import named
from apts_mpi.networks.task import Task
from apts_mpi.settings.config import TrainConfig

COLOUR = Task("classification", (3, 32, 32), 5)
GREY = Task("classification", (28, 28), 5)


class Library:
    """Stands for both: notes how networks are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        timm, vision = ModuleType("timm"), ModuleType("torchvision")
        models = ModuleType("torchvision.models")
        timm.__dict__.update(
            is_model=lambda name: name == "resnet18",
            list_models=lambda: ["resnet18"],
            create_model=self.make,
        )
        models.__dict__.update(list_models=lambda module: ["resnet18"], get_model=self.make)
        vision.models = models  # type: ignore[attr-defined]
        for module in (timm, vision, models):
            module.__spec__ = ModuleSpec(module.__name__, None)
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def make(self, name: str, **given: Any) -> nn.Module:
        self.asked.append((name, given))
        convolution = nn.Conv2d(given.get("in_chans", 3), 4, 3)
        head = nn.Sequential(nn.Linear(4, given.get("num_classes", 1000)))
        return nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library(monkeypatch)


def test_timm_is_asked_for_the_datas_outputs_and_channels(library: Library) -> None:
    module, loss = named.build("timm:resnet18", GREY, {"drop_rate": 0.1}, seed=0)
    asked = {"pretrained": False, "num_classes": 5, "in_chans": 1, "drop_rate": 0.1}
    assert library.asked == [("resnet18", asked)]
    assert loss is None
    assert module(torch.zeros(2, 28, 28)).shape == (2, 5)


@pytest.mark.parametrize("pretrained", [False, True])
def test_torchvision_downloads_only_what_is_asked_for(library: Library, pretrained: bool) -> None:
    name = "torchvision:resnet18"
    module, _ = named.build(name, COLOUR, {}, seed=0, pretrained=pretrained)
    (asked,) = library.asked
    more = {"weights": "DEFAULT"} if pretrained else {"weights": None, "num_classes": 5}
    assert asked == ("resnet18", more)
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 5)  # the last layer is a new one


def test_every_rank_makes_the_same_network(library: Library) -> None:
    one, two = (named.build("timm:resnet18", COLOUR, {}, seed=3)[0] for _ in range(2))
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("name", "task", "arguments", "told"),
    [
        ("timm:resnet19", COLOUR, {}, "timm has no such network; did you mean resnet18"),
        ("torchvision:resnet", COLOUR, {}, "torchvision has no such network; did you mean"),
        (
            "torchvision:resnet18",
            GREY,
            {},
            "takes 3 channels, .* have 1; .* timm:resnet18",
        ),
        ("timm:resnet18", Task("language", (8,), 5), {}, "is for images, the data are text"),
        ("timm:resnet18", Task("regression", (8,), 5), {}, r"is for images .* not \(8,\)"),
        ("timm:resnet18", COLOUR, {"checkpoint_path": "x"}, "--network-args checkpoint_path: "),
        ("torchvision:resnet18", COLOUR, {"weights": "x"}, "loaded with --pretrained on"),
    ],
)
def test_what_cannot_be_made_is_one_line(
    library: Library, name: str, task: Task, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        named.build(name, task, arguments, seed=0)
    assert library.asked == []


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apts_mpi.networks.zoo.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"timm is not installed; .* `pip install timm`"):
        named.build("timm:resnet18", COLOUR, {}, seed=0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"network_args": "width=3"}, "--network-args width=3: is not for mlp, .* --hidden"),
        ({"network": "a:b", "network_args": "width"}, "must be like width=64"),
        ({"network": "a:b", "network_args": "a=1,a=2"}, "must be like width=64"),
        ({"pretrained": True}, "--pretrained on: needs --network timm:NAME"),
        ({"network": "timm:hf-hub:x/y"}, "--network timm:hf-hub:x/y: must be mlp"),
    ],
)
def test_settings_that_no_network_has_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        TrainConfig(**given)


def installed(name: str) -> bool:
    """Whether a library is there and goes with this torch."""
    if find_spec(name) is None:
        return False
    try:
        __import__(name)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:squeezenet1_1"])
def test_a_real_one(name: str) -> None:
    if not installed(name.split(":")[0]):
        pytest.skip(f"{name.split(':')[0]} is not installed")
    module, _ = named.build(name, COLOUR, {}, seed=0)
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 5)

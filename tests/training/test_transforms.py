"""Changes of images by torchvision's transforms, imitated, and its own where it is installed."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from apts_mpi.errors import InputError
from apts_mpi.settings.config import TrainConfig
from apts_mpi.training.augmentation import augment
from apts_mpi.training.transforms import Changes


class Transform:
    def __call__(self, image: Tensor) -> Tensor:
        return image


class Brighter(Transform):
    """Adds a random number to an image, which it sees as 0 to 1."""

    def __init__(self, most: float = 0.5, *, by: tuple[float, ...] = (1.0,)) -> None:
        self.most, self.by = most, by

    def __call__(self, image: Tensor) -> Tensor:
        assert 0.0 <= image.min() <= image.max() <= 1.0
        return image + self.most * self.by[0] * torch.rand(())


class Halved(Transform):
    def __call__(self, image: Tensor) -> Tensor:
        return image[:, ::2]


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> None:
    package, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    v2 = ModuleType("torchvision.transforms.v2")
    v2.__dict__.update(Transform=Transform, Brighter=Brighter, Halved=Halved, Compose=list)
    transforms.v2 = v2  # type: ignore[attr-defined]
    for module in (package, transforms, v2):
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def changes(augmentations: str, **more: Any) -> Changes:
    given = {"shape": (3, 6, 6), "dtype": "uint8", "mean": np.full((3, 1, 1), 100.0), "std": 50.0}
    return Changes(TrainConfig(augment=augmentations).augmentations, **{**given, **more})


def images(count: int = 4) -> Tensor:
    """Normalised images of bytes."""
    x = torch.randint(256, (count, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    return (x - 100.0) / 50.0


@pytest.mark.usefixtures("vision")
def test_each_image_is_changed_by_itself_in_its_own_range() -> None:
    found = changes("Brighter(0.2, by=(2.0,))")(images(), (1, 2))
    added = (found - images()) * 50 / 255
    assert torch.allclose(added, added[:, :1, :1, :1].expand_as(added), atol=1e-5)
    drawn = added[:, 0, 0, 0]
    assert len(set(drawn.tolist())) == 4
    assert 0.0 <= drawn.min() < drawn.max() <= 0.4


@pytest.mark.usefixtures("vision")
def test_what_is_drawn_depends_on_the_key_alone() -> None:
    torch.manual_seed(3)
    first, after = changes("Brighter,flip")(images(), (1, 2)), torch.rand(())
    torch.manual_seed(3)
    assert torch.rand(()) == after  # the network's own numbers go on as if nothing had been drawn
    assert torch.equal(changes("Brighter,flip")(images(), (1, 2)), first)
    assert not torch.equal(changes("Brighter,flip")(images(), (1, 3)), first)


def test_ours_need_no_package() -> None:
    both = changes("crop,flip")
    assert torch.equal(both(images(), (4,)), augment(images(), ("crop", "flip"), (4,)))


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize(
    ("augmentations", "told"),
    [
        ("Brightr", "torchvision has no transform Brightr; did you mean Brighter"),
        ("Compose", "torchvision has no transform Compose"),
        ("Brighter(worst=1)", r"--augment Brighter\(worst=1\): cannot be made .*worst"),
        ("Halved", r"--augment Halved: makes \(3, 3, 6\) of images \(3, 6, 6\)"),
        ("Brighter(by=())", "fails on an image .* IndexError"),
    ],
)
def test_transforms_that_do_not_fit_are_one_line(augmentations: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        changes(augmentations)


@pytest.mark.parametrize(
    "words", ["", "crops", "crop(4)", "crop flip", "A.b", "A(x)", "A(**{})", "A(f())", "A(", "[A]"]
)
def test_what_is_no_list_of_changes_is_refused(words: str) -> None:
    with pytest.raises(InputError, match=r"--augment .*: must be crop, flip, or names of"):
        TrainConfig(augment=words)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apts_mpi.training.transforms.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed; .* `pip install torchvision` .*crop and"):
        changes("RandomRotation(15)")


def test_torchvisions_own() -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    try:
        __import__("torchvision")
    except Exception:
        pytest.skip("torchvision does not go with this torch")
    several = "crop,RandomRotation(15),ColorJitter(brightness=0.4),RandomErasing(p=1.0),RandAugment"
    found = changes(several)(images(), (0,))
    assert found.shape == images().shape
    assert torch.isfinite(found).all()
    assert torch.equal(changes(several)(images(), (0,)), found)
    for refused in ("MixUp", "RandomResizedCrop(4)"):
        with pytest.raises(InputError, match="--augment"):
            changes(refused)

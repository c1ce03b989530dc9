"""Augmented images against crops and flips made one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.training.augmentation import PADDING, augment

NAMES = [("crop",), ("flip",), ("crop", "flip"), ("flip", "crop")]


def images(b: int, c: int = 3, h: int = 5, w: int = 6) -> torch.Tensor:
    """Pixels that are all different and none zero."""
    return torch.arange(1, b * c * h * w + 1, dtype=torch.float32).reshape(b, c, h, w)


def possible(image: np.ndarray, names: tuple[str, ...]) -> dict[bytes, tuple[int, int, bool]]:
    """All that may become of an image, with its shift down, right, and whether it is mirrored."""
    _, h, w = image.shape
    padded = np.pad(image, ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    steps = range(2 * PADDING + 1) if "crop" in names else [PADDING]
    made = {}
    for down, right, mirrored in product(steps, steps, [False, True]):
        part = padded[:, down : down + h, right : right + w]
        if mirrored and "flip" in names:
            part = part[:, :, ::-1]
        made[part.tobytes()] = (down, right, mirrored)
    return made


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    names=st.sampled_from(NAMES),
    b=st.integers(0, 5),
    c=st.integers(1, 3),
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    seed=st.integers(0, 2**40),
)
def test_every_image_is_a_crop_or_flip_of_itself(
    names: tuple[str, ...], b: int, c: int, h: int, w: int, seed: int
) -> None:
    x = images(b, c, h, w)
    before = x.clone()
    found = augment(x, names, (seed, 1))
    assert torch.equal(x, before)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    for old, new in zip(x.numpy(), found.numpy(), strict=True):
        assert new.tobytes() in possible(old, names)


def test_all_places_come_about_equally_often_and_apart() -> None:
    image = images(1, 1)
    places = possible(image[0].numpy(), ("crop", "flip"))
    found = augment(image.expand(16_200, 1, 5, 6), ("crop", "flip"), (0,))
    drawn = [places[each.tobytes()] for each in found.numpy()]
    counts = np.unique(np.array(drawn), axis=0, return_counts=True)[1]
    assert len(counts) == 162  # 81 places, mirrored or not: 100 times each on average
    assert ((counts - 100) ** 2 / 100).sum() < 240  # chi-squared, 161 degrees, 1e-4


def test_what_is_drawn_depends_on_the_key_alone() -> None:
    x = images(40)
    first = augment(x, ("crop", "flip"), (3, 1, 7))
    torch.manual_seed(5)
    np.random.seed(5)
    assert torch.equal(augment(x, ("flip", "crop"), (3, 1, 7)), first)
    others = [augment(x, ("crop", "flip"), key) for key in ((4, 1, 7), (3, 2, 7), (3, 1, 8))]
    assert not any(torch.equal(first, other) for other in others)


def test_one_does_not_change_the_other() -> None:
    x = images(40)
    cropped, both = (augment(x, names, (1, 2)) for names in (("crop",), ("crop", "flip")))
    same = [torch.equal(a, b) for a, b in zip(cropped, both, strict=True)]
    assert 0 < sum(same) < 40
    mirrored = [bool((a != b).any()) for a, b in zip(augment(x, ("flip",), (1, 2)), x, strict=True)]
    assert [not each for each in mirrored] == same


def test_nothing_changes_where_nothing_is_asked_for() -> None:
    x = images(3)
    assert augment(x, (), (0,)) is x


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same() -> None:
    x = images(40)
    found = augment(x.cuda(), ("crop", "flip"), (3,))
    assert found.is_cuda
    assert torch.equal(found.cpu(), augment(x, ("crop", "flip"), (3,)))

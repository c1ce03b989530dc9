"""Folders of images by split and class: those that are taken, and those that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apts_mpi.data import load_source
from tests.data.helpers import refused
from tests.data.sources.pictures import Image, read, tree


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val", "dev", "holdout"])
def test_folders_of_splits(tmp_path: Path, val: str) -> None:
    root = tree(tmp_path, *(f"{s}/{name}" for s in ("train", val, "test") for name in "ab"))
    source = load_source("imagefolder", path=root, size=(6, 8))
    assert source.classes == ("a", "b")
    assert source.y_val is not None
    for split in ("train", "val", "test"):
        assert source.columns(split)["y"].tolist() == [0] * 4 + [1] * 4
    kept = np.asarray(Image.open(root / val / "b" / "1.png")).transpose(2, 0, 1)
    assert np.array_equal(np.asarray(source.x_val)[5], kept)
    with refused(str(root), "--test-fraction"):
        load_source("imagefolder", path=root, size=(6, 8), test_fraction=0.2)


def test_a_validation_folder_alone_is_the_test(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As ImageNet comes, whose test images have no classes."""
    root = tree(tmp_path, *(f"{s}/{name}" for s in ("train", "val") for name in "ab"), "test")
    source = load_source("imagefolder", path=root, size=(6, 8))
    assert (len(source.y_train), len(source.y_test), source.y_val) == (8, 8, None)
    assert "has no class folders and is left out" in caplog.text
    assert "taken for the test" in caplog.text
    source = load_source("imagefolder", path=root, size=(6, 8), test_fraction=0.25)
    sizes = [len(source.columns(split)["y"]) for split in ("train", "val", "test")]
    assert sizes == [6, 8, 2]


@pytest.mark.parametrize("test", ["test", "test/images"])
def test_a_test_without_classes(
    tmp_path: Path, test: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(tmp_path, "train/a", "train/b", test)
    words = ["images, but no folder of a class (it has none)", "it has images)"]
    with refused(str(root / "test"), words["/" in test], "move it away", "--test-fraction"):
        load_source("imagefolder", path=root, size=(6, 8))
    tree(root, "val/a", "val/b", "extra/a", "extra/b")
    assert len(load_source("imagefolder", path=root, size=(6, 8)).y_test) == 8
    assert "test: has no class folders and is left out" in caplog.text
    assert "folders not used: extra" in caplog.text


def test_images_one_level_deeper(tmp_path: Path) -> None:
    """As Tiny ImageNet has them, and as archives unpack."""
    root = tree(tmp_path / "deep", *(f"{s}/{n}/images" for s in ("train", "test") for n in "ab"))
    source = load_source("imagefolder", path=root, size=(6, 8))
    assert (source.y_train.tolist(), source.y_test.tolist()) == ([0] * 4 + [1] * 4,) * 2
    root = tree(tmp_path / "inner", "flowers/a", "flowers/b")
    assert load_source("imagefolder", path=root, size=(6, 8)).classes == ("a", "b")
    root = tree(tmp_path / "kaggle", "training_set/a", "training_set/b", "test_set/a", "test_set/b")
    assert load_source("imagefolder", path=root, size=(6, 8)).classes == ("a", "b")


def test_layouts_that_are_ambiguous(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Folders of folders may be splits or folds of which nobody knows: no classes are guessed."""
    with refused("fold1", "no images, but a and b have"):
        read(tree(tmp_path / "folds", *(f"fold{k}/{name}" for k in (1, 2) for name in "ab")), 2, 2)
    names = [f"{s}/{name}" for s in ("train", "val", "valid") for name in "ab"]
    assert len(read(tree(tmp_path / "exact", *names), 2, 2)) == 8
    names = [f"{s}/{name}" for s in ("train", "valid", "validation") for name in "ab"]
    with refused("valid and validation", "rename one"):
        read(tree(tmp_path / "two", *names), 2, 2)
    with refused("training samples and no others", "--test-fraction"):
        load_source("imagefolder", path=tree(tmp_path / "one", "train/a", "train/b"), size=(2, 2))
    with refused("has class 'c'", "not in train"):
        read(tree(tmp_path / "more", "train/a", "train/b", "val/c", "val/a"), 2, 2)
    read(tree(tmp_path / "mixed", "a", "a/old", "b"), 2, 2)
    assert "not from old" in caplog.text

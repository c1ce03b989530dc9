"""Loading by name: the embedded digits, validation splits, misuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apts_mpi.data import cache_directory, load_source, write_shards
from tests.data.helpers import X, Y, refused, saved


def test_digits() -> None:
    a, b, c = (load_source("digits", seed=seed) for seed in (0, 0, 1))
    assert a.x_train.shape == (1437, 1, 8, 8)
    assert a.x_test.shape == (360, 1, 8, 8)
    assert a.x_train.dtype == np.uint8
    assert a.classes == tuple("0123456789")
    assert np.array_equal(a.x_train, b.x_train)
    assert not np.array_equal(a.y_train, c.y_train)
    everything = np.concatenate([a.x_train, a.x_test]).reshape(1797, 64)
    assert everything.max() == 16
    # The sum of all pixels and the class counts published for the data set.
    assert int(everything.sum()) == 561718
    counts = np.bincount(np.concatenate([a.y_train, a.y_test]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.abs(np.bincount(a.y_test) - counts * 0.2).max() <= 1


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    source, original = load_source("digits"), datasets.load_digits()

    def rows(x: np.ndarray, y: np.ndarray) -> list[tuple[bytes, int]]:
        flat = x.reshape(len(x), 64).astype(np.uint8)
        return sorted((a.tobytes(), int(b)) for a, b in zip(flat, y, strict=True))

    found = rows(source.x_train, source.y_train) + rows(source.x_test, source.y_test)
    assert sorted(found) == rows(original.images, original.target)


def test_misused_sources(tmp_path: Path) -> None:
    with refused("--from"):
        load_source("arrays")
    with refused("nowhere", "--from"):
        load_source("mnist", path=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("cifar", {}, "cifar: no such data set; choose digits, mnist, cifar10, arrays or image"),
        ("digits", {"task": "ranking"}, "--task ranking: choose classification or regression"),
        ("digits", {"task": "regression"}, "--task: it is for arrays, not for digits; drop"),
        ("digits", {"download": True}, "--download: it is for mnist or cifar10, not for digits"),
        ("digits", {"path": Path("x")}, "--from: it is for mnist, cifar10, arrays, imagefolder"),
        ("digits", {"named": {"x": "x.npy"}}, "--x: it is for arrays, not for digits"),
        ("digits", {"channels_last": False}, "--channels-last: it is for arrays"),
        ("arrays", {"size": (2, 2)}, "--size: it is for imagefolder, not for arrays"),
        ("arrays", {"channels": 1}, "--channels: it is for imagefolder, not for arrays"),
        ("mnist", {"test_fraction": 0.1}, "--test-fraction: mnist has a test of its own; drop"),
    ],
)
def test_what_a_source_has_no_use_for_is_refused(
    name: str, options: dict[str, Any], line: str
) -> None:
    with refused(line):
        load_source(name, **options)


def test_a_normalization_that_is_none_is_refused(tmp_path: Path) -> None:
    with refused("--normalize each: choose auto, feature, channel, one or off"):
        write_shards(load_source("digits"), tmp_path / "d", shards=1, normalize="each")


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("APTS_MPI_CACHE", raising=False)
    assert cache_directory("digits", 4) == tmp_path / "home" / ".cache" / "apts_mpi" / "digits-4"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory("digits", 4) == tmp_path / "xdg" / "apts_mpi" / "digits-4"
    monkeypatch.setenv("APTS_MPI_CACHE", str(tmp_path / "own"))
    assert cache_directory("digits", 4) == tmp_path / "own" / "digits-4"
    with refused("--from", "--download"):
        load_source("mnist")


def test_a_validation_split_is_cut_from_the_training_data() -> None:
    whole, source = load_source("digits", seed=2), load_source("digits", seed=2, val_fraction=0.1)
    assert np.array_equal(source.x_test, whole.x_test)
    assert source.x_val is not None
    assert source.y_val is not None
    assert (len(source.y_train), len(source.y_val)) == (1437 - 144, 144)
    parts = [*zip(source.x_train, source.y_train, strict=True)]
    parts += [*zip(source.x_val, source.y_val, strict=True)]
    found = sorted((x.tobytes(), int(y)) for x, y in parts)
    pairs = zip(whole.x_train, whole.y_train, strict=True)
    assert found == sorted((x.tobytes(), int(y)) for x, y in pairs)
    counts = np.bincount(whole.y_train)
    assert np.abs(np.bincount(source.y_val) - counts * 0.1).max() <= 1
    other = load_source("digits", seed=3, val_fraction=0.1)
    assert other.x_val is not None
    assert not np.array_equal(other.x_val, source.x_val)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_no_part_for_validation(fraction: float) -> None:
    with refused("--val-fraction", str(fraction), "between 0 and 1"):
        load_source("digits", val_fraction=fraction)


def test_files_of_the_wrong_kind(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"own{suffix}"
    with refused(str(path), "not a file"):
        load_source("arrays", path=path)
    path.write_bytes(b"hello")
    with refused(str(path), "cannot be read"):
        load_source("arrays", path=path)
    good = saved(path, x=X, y=Y).read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with refused(str(path), "cannot be read"):
        load_source("arrays", path=path)
    with refused("own.csv", ".npz, .npy, .h5 or .mat"):
        load_source("arrays", path=tmp_path / "own.csv")

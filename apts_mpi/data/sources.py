"""Where data come from: the embedded digits, MNIST, CIFAR-10, or the user's own arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.arrays import read_arrays
from apts_mpi.data.checks import check_features, check_labels, check_names, check_targets
from apts_mpi.data.cifar import fetch_cifar10, read_cifar10
from apts_mpi.data.format import fault
from apts_mpi.data.mnist import fetch_mnist, read_mnist
from apts_mpi.data.partitioning import split_indices
from apts_mpi.errors import InputError

SOURCES = ("digits", "mnist", "cifar10", "arrays")
TASKS = ("classification", "regression")


@dataclass(frozen=True, eq=False)
class Source:
    """A data set in memory, checked on creation.

    `x_*` are (n, *sample_shape); uint8 is kept (image-like), all other real types become
    float32. `y_*` are class indices 0..C-1 of shape (n,), made int64; `classes` has C >= 2
    names. Of the task "regression" `y_*` are targets (n,) or (n, outputs), made float32 of shape
    (n, outputs), and `classes` is empty. `origin` names the data in messages. Raises InputError.
    """

    name: str
    x_train: NDArray[Any]
    y_train: NDArray[Any]
    x_test: NDArray[Any]
    y_test: NDArray[Any]
    classes: tuple[str, ...] = ()
    origin: str = ""
    task: str = "classification"

    def __post_init__(self) -> None:
        where = self.origin or self.name
        if self.task not in TASKS or (self.task == "regression" and self.classes):
            raise ValueError(f"a source of {self.task} with {len(self.classes)} classes")
        regression = self.task == "regression"
        names = check_names(where, self.name, self.classes, least=0 if regression else 2)
        checked: dict[str, Any] = {"origin": where, "classes": names}
        for split in ("train", "test"):
            x, y = np.asarray(getattr(self, f"x_{split}")), np.asarray(getattr(self, f"y_{split}"))
            x = checked[f"x_{split}"] = check_features(where, f"x_{split}", x)
            if regression:
                y = check_targets(where, f"y_{split}", y, len(x))
            else:
                y = check_labels(where, f"y_{split}", y, len(x), len(self.classes))
            checked[f"y_{split}"] = y
        train, test = (f"{x.dtype} {x.shape[1:]}" for x in (checked["x_train"], checked["x_test"]))
        if train != test:
            raise fault(where, f"samples are {train} in x_train, {test} in x_test", "make one kind")
        if checked["y_train"].shape[1:] != checked["y_test"].shape[1:]:
            outputs = " and ".join(str(checked[f"y_{s}"].shape[1]) for s in ("train", "test"))
            raise fault(where, f"{outputs} outputs in y_train and y_test", "make one kind")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def columns(self, split: str) -> dict[str, NDArray[Any]]:
        """The data sets of a split."""
        return {name: getattr(self, f"{name}_{split}") for name in ("x", "y")}


def cache_root() -> Path:
    """$APTS_MPI_CACHE, or $XDG_CACHE_HOME/apts_mpi, or ~/.cache/apts_mpi."""
    if own := os.environ.get("APTS_MPI_CACHE"):
        return Path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "apts_mpi"
    return Path.home() / ".cache" / "apts_mpi"


def cache_directory(name: str, shards: int) -> Path:
    """The folder in the cache for the data set `name` cut into `shards`."""
    return cache_root() / f"{name}-{shards}"


def load_source(
    name: str,
    *,
    path: Path | None = None,
    download: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Source:
    """Load a data set: "digits", "mnist", "cifar10" or "arrays".

    `path` is the folder of the MNIST files or of CIFAR-10's binary ones (by default one in the
    cache; `download` fetches what is missing), or the user's .npz or .h5 file. `test_fraction`
    and `seed` make the stratified split of data that come without one. Raises InputError.
    """
    if name not in SOURCES:
        raise InputError(f"data source {name!r} is not known; choose one of {', '.join(SOURCES)}")
    if download and name not in ("mnist", "cifar10"):
        raise InputError(f"--download: {name} is not downloaded; drop the option")
    if name == "digits":
        if path is not None:
            raise InputError(f"--from {path}: digits are embedded; drop the option")
        return _digits(test_fraction, seed)
    if name == "mnist":
        return _mnist(path, download)
    if name == "cifar10":
        return _cifar10(path, download)
    if path is None:
        raise InputError("arrays: no file given; name a .npz or .h5 file with --from FILE")
    return _arrays(Path(path), test_fraction, seed)


def _digits(test_fraction: float, seed: int) -> Source:
    embedded = resources.files("apts_mpi.data.embedded") / "digits.h5"
    with resources.as_file(embedded) as path, h5py.File(path, "r") as file:
        x, y = file["x"][:], file["y"][:].astype(np.int64)
    train, test = split_indices(y, test_fraction, seed)
    classes = tuple(str(digit) for digit in range(10))
    return Source("digits", x[train], y[train], x[test], y[test], classes)


def _mnist(path: Path | None, download: bool) -> Source:
    folder = cache_root() / "mnist" if path is None else Path(path)
    if download:
        fetch_mnist(folder)
    elif path is None and not folder.is_dir():
        raise InputError("mnist: no folder given; name it with --from DIR, or use --download")
    x_train, y_train, x_test, y_test = read_mnist(folder)
    classes = tuple(str(digit) for digit in range(10))
    return Source("mnist", x_train, y_train, x_test, y_test, classes, origin=str(folder))


def _cifar10(path: Path | None, download: bool) -> Source:
    folder = cache_root() / "cifar10" if path is None else Path(path)
    if download:
        fetch_cifar10(folder)
    elif path is None and not folder.is_dir():
        raise InputError(
            "cifar10: no folder given; name that of its binary files by --from DIR, or use "
            "--download"
        )
    x_train, y_train, x_test, y_test, classes = read_cifar10(folder)
    return Source("cifar10", x_train, y_train, x_test, y_test, classes, origin=str(folder))


def _arrays(path: Path, test_fraction: float, seed: int) -> Source:
    x, y, x_test, y_test, classes = read_arrays(path)
    if x_test is None or y_test is None:
        train, test = split_indices(y, test_fraction, seed)
        x, x_test, y, y_test = x[train], x[test], y[train], y[test]
    return Source(path.stem, x, y, x_test, y_test, classes, origin=str(path))

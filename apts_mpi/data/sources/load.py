"""Where data come from: the embedded digits, MNIST, CIFAR-10, the user's own arrays or images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.sources.arrays import read_arrays
from apts_mpi.data.sources.cache import in_cache
from apts_mpi.data.sources.cifar import fetch_cifar10, read_cifar10
from apts_mpi.data.sources.finding import NAMED, named_file
from apts_mpi.data.sources.images import read_images
from apts_mpi.data.sources.mnist import fetch_mnist, read_mnist
from apts_mpi.data.sources.source import TASKS, Source
from apts_mpi.data.sources.splits import (
    TEST_FRACTION,
    split_indices,
    strata,
    warn_if_short,
    with_test,
)
from apts_mpi.errors import InputError, either, fault

SOURCES = ("digits", "mnist", "cifar10", "arrays", "imagefolder")
# Which sources, a text among them, take an option; one that is not here is for all.
TAKEN_BY: dict[str, tuple[str, ...]] = {
    "from": ("mnist", "cifar10", "arrays", "imagefolder", "text"),
    **dict.fromkeys((*NAMED, "channels-last", "task"), ("arrays",)),
    "download": ("mnist", "cifar10"),
    "test-fraction": ("digits", "arrays", "imagefolder", "text"),
    **dict.fromkeys(("size", "channels"), ("imagefolder",)),
    "level": ("text",),
}


def cache_directory(name: str, shards: int) -> Path:
    """The folder in the cache for the data set `name` cut into `shards`. Raises InputError."""
    return in_cache(f"{name}-{shards}")


def load_source(
    name: str,
    *,
    path: Path | None = None,
    download: bool = False,
    test_fraction: float | None = None,
    seed: int = 0,
    task: str = "classification",
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    val_fraction: float | None = None,
    named: Mapping[str, str] | None = None,
    channels_last: bool | None = None,
) -> Source:
    """Load a data set: "digits", "mnist", "cifar10", "arrays" or "imagefolder".

    `path` is the folder of the MNIST files or of CIFAR-10's binary ones (by default one in the
    cache; `download` fetches what is missing), or the user's file of arrays, or folder of images,
    which are made of one `size`, rows and columns, with 3 (the default) or 1 `channels`. The
    samples of arrays and images stay in their files (`Stored`). `test_fraction` (default 0.2) and
    `seed` make the split of data that come without one, stratified where there are classes.
    `val_fraction` of the training data, if given, become the validation split of data that come
    without one, in the same way. `task` is what arrays are for, `named` and `channels_last` are
    those of `read_arrays`. What a data set has no use for is refused. Raises InputError.
    """
    if name not in SOURCES:
        raise InputError(f"{name}: no such data set; choose {either(SOURCES)}")
    if task not in TASKS:
        raise InputError(f"--task {task}: choose {either(TASKS)}")
    named = named or {}
    options = {"from": path, "download": download or None, "task": task, "size": size, **named}
    more = {"channels": channels, "channels-last": channels_last, "test-fraction": test_fraction}
    refuse_unused(name, {**options, **more})
    if name == "digits":
        source = _digits(TEST_FRACTION if test_fraction is None else test_fraction, seed)
    elif name == "mnist":
        source = _mnist(path, download)
    elif name == "cifar10":
        source = _cifar10(path, download)
    elif name == "imagefolder":
        source = _images(path, test_fraction, seed, size, channels or 3)
    else:
        source = _arrays(path, named, test_fraction, seed, task, channels_last)
    return source if val_fraction is None else _validated(source, val_fraction, seed)


def refuse_unused(name: str, options: Mapping[str, Any]) -> None:
    """See that a source, or a text, has a use for the options that are given, not None.

    All but a text are for classification without being asked. Raises InputError.
    """
    for option, value in options.items():
        plain = option == "task" and value == TASKS[0] and name != "text"
        if value is None or plain or name in TAKEN_BY.get(option, (name,)):
            continue
        why = f"it is for {either(TAKEN_BY[option])}, not for {name}"
        if option == "test-fraction":
            why = f"{name} has a test of its own"
        raise InputError(f"--{option}: {why}; drop the option")


def _validated(source: Source, fraction: float, seed: int) -> Source:
    """With that part of the training data as a validation split."""
    where = source.origin
    if source.y_val is not None:
        raise fault(where, "has validation samples of its own", "drop --val-fraction")
    if not 0 < fraction < 1:
        raise InputError(f"--val-fraction {fraction}: give a number between 0 and 1")
    x, y = source.x_train, source.y_train
    train, val = split_indices(strata(y, source.task), fraction, seed)
    if not len(val):
        what = f"has {len(y)} training samples, none of them for the validation"
        raise fault(where, what, "give more, or a larger --val-fraction")
    warn_if_short(where, "--val-fraction", fraction, len(val), len(y))
    return replace(source, x_train=x[train], y_train=y[train], x_val=x[val], y_val=y[val])


def _digits(test_fraction: float, seed: int) -> Source:
    embedded = resources.files("apts_mpi.data.embedded") / "digits.h5"
    with resources.as_file(embedded) as path, h5py.File(path, "r") as file:
        x, y = file["x"][:], file["y"][:].astype(np.int64)
    train, test = split_indices(y, test_fraction, seed)
    classes = tuple(str(digit) for digit in range(10))
    return Source("digits", x[train], y[train], x[test], y[test], classes)


def _mnist(path: Path | None, download: bool) -> Source:
    folder = in_cache("mnist") if path is None else path
    if download:
        fetch_mnist(folder)
    elif path is None and not folder.is_dir():
        raise InputError("mnist: no folder given; name it with --from DIR, or use --download")
    x_train, y_train, x_test, y_test = read_mnist(folder)
    classes = tuple(str(digit) for digit in range(10))
    return Source("mnist", x_train, y_train, x_test, y_test, classes, origin=str(folder))


def _cifar10(path: Path | None, download: bool) -> Source:
    folder = in_cache("cifar10") if path is None else path
    if download:
        fetch_cifar10(folder)
    elif path is None and not folder.is_dir():
        raise InputError(
            "cifar10: no folder given; name that of its binary files by --from DIR, or use "
            "--download"
        )
    x_train, y_train, x_test, y_test, classes = read_cifar10(folder)
    return Source("cifar10", x_train, y_train, x_test, y_test, classes, origin=str(folder))


def _images(
    path: Path | None,
    test_fraction: float | None,
    seed: int,
    size: tuple[int, int] | None,
    channels: int,
) -> Source:
    if path is None:
        raise InputError("imagefolder: no folder given; name that of the classes by --from DIR")
    if size is None:
        raise InputError("imagefolder: no size given; say --size H,W, or one number for both")
    try:
        found = read_images(path, size=size, channels=channels)
    except OSError as exc:
        raise fault(path, f"cannot be read ({exc})", "change its permissions") from exc
    x, y = with_test(path, found.x, found.y, found.plain, test_fraction, seed)
    return _source(path.resolve().name, str(path), x, y, found.classes)


def _arrays(
    path: Path | None,
    named: Mapping[str, str],
    test_fraction: float | None,
    seed: int,
    task: str,
    channels_last: bool | None,
) -> Source:
    found = read_arrays(path, named=named, task=task, channels_last=channels_last)
    where = path if path is not None else named_file(named["x"])
    x, y = with_test(where, found.x, found.y, found.plain, test_fraction, seed, task)
    return _source(where.stem, str(where), x, y, found.classes, task)


def _source(
    name: str,
    origin: str,
    x: dict[str, Any],
    y: dict[str, NDArray[Any]],
    classes: tuple[str, ...],
    task: str = "classification",
) -> Source:
    return Source(
        name,
        x["train"],
        y["train"],
        x["test"],
        y["test"],
        classes,
        origin=origin,
        task=task,
        x_val=x.get("val"),
        y_val=y.get("val"),
    )

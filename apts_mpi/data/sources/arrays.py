"""The user's own arrays, by the names and in the layouts that data sets are published with.

They come from .npz, .npy, HDF5 or MATLAB 7.3 files; nothing in a file is trusted or unpickled.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.sources.checks import (
    check_features,
    check_kind,
    check_names,
    check_targets,
    may_be_channels_last,
)
from apts_mpi.data.sources.finding import KINDS, SPLIT_WORDS, Place, given, opened_file, searched
from apts_mpi.data.sources.hdf5 import H5
from apts_mpi.data.sources.labels import numbered, plain_shape, read_labels
from apts_mpi.data.sources.moments import Precision
from apts_mpi.data.sources.stored import Stored
from apts_mpi.errors import InputError, fault
from apts_mpi.networks.task import looks_channels_last

log = logging.getLogger("apts_mpi")

_CHANNELS = (1, 3, 4)  # that images have, as a rule


class Arrays(NamedTuple):
    """Features, which are read later, and labels as class indices, int64, or targets (n, outputs),
    float32, of each split that there is: "train", "val", "test"; `plain` where nothing in the
    names speaks of splits."""

    x: dict[str, Stored]
    y: dict[str, NDArray[Any]]
    classes: tuple[str, ...]
    plain: bool


def read_arrays(
    path: Path | None,
    *,
    named: Mapping[str, str] | None = None,
    task: str = "classification",
    channels_last: bool | None = None,
) -> Arrays:
    """Find the arrays in a file, or those `named`, and read all but the features.

    Wanted are `x` and `y`, which are "train", or these of training, test and validation (`x_train`,
    `test_images`, `val/labels` and the like; `x` and `y` beside a test are those of training), with
    optional `classes` (names). Labels are numbers
    or text, (n,) or with further axes of length 1, or one-hot; without `classes` the sorted labels
    found in training become the classes. Of the task "regression" `y` are real targets (n,) or
    (n, outputs) instead, and there are no classes.

    Args:
        path: .npz or HDF5 file. named: files of single arrays, by `NAMED`, "FILE" or "FILE:KEY".
        channels_last: whether samples (h, w, c) are made (c, h, w). By default bytes are where they
            look like images, and other types that do are refused.

    Raises:
        InputError: arrays are missing, ambiguous, damaged or do not fit each other.
    """
    if named:
        if path is not None:
            raise InputError(f"--from {path}: give that, or --x and --y")
        slots = given(named)
        plain = "x_val" not in slots and "x_test" not in slots
    elif path is None:
        raise InputError(f"arrays: no file given; name {KINDS} with --from FILE, or --x and --y")
    else:
        slots, plain = searched(opened_file(path))
    return _arranged(slots, task, channels_last, plain)


def _arranged(slots: Mapping[str, Place], task: str, last: bool | None, plain: bool) -> Arrays:
    """Read the labels and look at the features."""
    splits = [split for split in SPLIT_WORDS if f"x_{split}" in slots]
    regression = task == "regression"
    if regression and "classes" in slots:
        where = slots["classes"].file.path
        raise fault(where, "has classes, which a regression has not", "remove them")
    classes = _class_names(slots["classes"]) if "classes" in slots else None
    x, labels, targets = {}, [], {}
    for split in splits:
        at = slots[f"y_{split}"]
        where = at.file.path
        features, y = _fitting(slots[f"x_{split}"], at)
        _check_samples(slots[f"x_{split}"], features, at, y)
        x[split] = _features(slots[f"x_{split}"], features, last, training=split == "train")
        if regression:
            if y.dtype.kind not in "buif":
                check_targets(where, at.name, np.empty(0, y.dtype), 0)  # refuses it
            found = np.asarray(y).reshape(plain_shape(y.shape, len(features)))
            targets[split] = check_targets(where, at.name, found, len(features))
        else:
            labels.append(read_labels(where, at.name, y, len(features)))
    if regression:
        return Arrays(x, targets, (), plain)
    numbers, names = numbered(labels, classes)
    return Arrays(x, dict(zip(splits, numbers, strict=True)), names, plain)


def _fitting(x_at: Place, y_at: Place) -> tuple[Stored, Stored]:
    """Features and labels with as many rows; MATLAB may have these on the first or last axis."""
    x, y = x_at.file.array(x_at.key), y_at.file.array(y_at.key)
    if not x.shape or not y.shape:
        place = y_at if x.shape else x_at
        raise fault(place.file.path, f"{place.name} has shape ()", "store a row per sample")
    ends = []
    for place, data in ((x_at, x), (y_at, y)):
        turned = isinstance(place.file, H5) and place.file.matlab and data.ndim > 1
        ends.append({False: data.shape[0], True: data.shape[-1]} if turned else {False: len(data)})
    fits = [pair for pair in product(*ends) if ends[0][pair[0]] == ends[1][pair[1]] > 1]
    if len(fits) > 1:
        what = f"{x_at.name} is {x.shape} and {y_at.name} {y.shape}: more axes than one may count"
        raise fault(x_at.file.path, f"{what} the samples", f"give {KINDS} with samples first")
    if fits and fits[0][0]:
        assert isinstance(x_at.file, H5), "asked above"
        x = x_at.file.array(x_at.key, last=True)
    if fits and fits[0][1]:
        assert isinstance(y_at.file, H5), "asked above"
        y = y_at.file.array(y_at.key, last=True)
    if not fits and x.ndim > 1 and len(x) != len(y) == x.shape[-1]:
        what = f"{x_at.name} has shape {x.shape} for {len(y)} labels: samples are on its last axis"
        raise fault(x_at.file.path, what, "store them on the first, as numpy.moveaxis(x, -1, 0)")
    return x, y


def _check_samples(x_at: Place, x: Stored, y_at: Place, y: Stored) -> None:
    where, name = x_at.file.path, x_at.name
    if not len(x) and not len(y):
        raise fault(where, f"{name} has no samples", f"leave {name} and {y_at.name} out")
    if x.ndim == 1:
        remedy = "store samples by features, as (n, 1) where it is one"
        if len(plain_shape(y.shape, len(x))) > 1:
            remedy = f"--x and --y look swapped, the labels being {y.shape}; or {remedy}"
        raise fault(where, f"{name} has shape {x.shape}", remedy)


def _features(at: Place, x: Stored, last: bool | None, *, training: bool) -> Stored:
    """The features as they are stored in shards; the training's changes are logged."""
    where = at.file.path
    check_kind(where, at.name, x.shape, x.dtype)
    if last and x.ndim != 4:
        what = f"{at.name} has shape {x.shape}, not (n, h, w, channels)"
        raise fault(where, what, "drop --channels-last on")
    if last and x.shape[1] in _CHANNELS and x.shape[3] not in _CHANNELS:
        what = f"{at.name} has shape {x.shape}, which is channels first already"
        raise fault(where, what, "drop --channels-last on")
    move, turned = bool(last), ""
    usual = looks_channels_last(x.shape[1:])
    if last is None and (usual or may_be_channels_last(x.shape[1:])):
        what = f"{at.name} has shape {x.shape}, which looks like images with channels last"
        if x.dtype != np.uint8 or not usual:
            remedy = "say --channels-last on to make them channels first, or off to leave them"
            raise fault(where, what, remedy)
        turned = f"{what}: made channels first; --channels-last off leaves them"
        move = True

    precision = Precision(x.shape[1:], x.dtype)

    def checked(block: NDArray[Any], first: int) -> NDArray[Any]:
        nonlocal precision, turned
        moved = block.transpose(0, 3, 1, 2) if move else block
        single = check_features(where, at.name, moved, first=first)
        if training:  # by whose deviation features are divided
            if not first:
                precision = Precision(x.shape[1:], x.dtype)
            precision.add(block)
            if first + len(block) == len(x):
                precision.check(where, at.name)
                if turned:  # and all is sound
                    log.warning("%s: %s", where, turned)
                    turned = ""
        return single

    h_w_c = x.shape[1:]
    shape = (len(x), h_w_c[2], *h_w_c[:2]) if move else x.shape
    return x.mapped(shape, np.dtype("|u1" if x.dtype == np.uint8 else "<f4"), checked)


def _class_names(at: Place) -> tuple[str, ...]:
    where, names = at.file.path, at.file.array(at.key)
    if names.dtype.kind not in "USO" or names.ndim != 1:
        what = f"{at.name} is {names.dtype} of shape {names.shape}"
        raise fault(where, what, "store a row of text")
    try:
        texts = [n.decode() if isinstance(n, bytes) else str(n) for n in np.asarray(names).tolist()]
    except UnicodeDecodeError as exc:
        raise fault(where, f"{at.name} holds no text ({exc})", "store names in UTF-8") from exc
    return check_names(where, where.stem, texts)

"""The user's own arrays, by the names and in the layouts that data sets are published with.

They come from .npz, .npy, HDF5 or MATLAB 7.3 files; nothing in a file is trusted or unpickled.
"""

from __future__ import annotations

import logging
import re
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
from apts_mpi.data.sources.hdf5 import H5
from apts_mpi.data.sources.labels import numbered, plain_shape, read_labels
from apts_mpi.data.sources.moments import Precision
from apts_mpi.data.sources.npy import Npy, Npz
from apts_mpi.data.sources.stored import Stored
from apts_mpi.errors import InputError, fault
from apts_mpi.networks.task import looks_channels_last

log = logging.getLogger("apts_mpi")

READERS: dict[str, type[H5] | type[Npz] | type[Npy]] = {
    ".npz": Npz,
    ".npy": Npy,
    ".h5": H5,
    ".hdf5": H5,
    ".mat": H5,
}
KINDS = "a .npz, .npy, .h5 or .mat (MATLAB 7.3) file"
NAMED = ("x", "y", "x-val", "y-val", "x-test", "y-test")  # flags that name an array
_LISTED = 8  # arrays that a message tells of
_LOOKED = 100  # arrays of a file that are looked at to tell of them
_CHANNELS = (1, 3, 4)  # that images have, as a rule
# What x and y and the splits are called, capitals and signs between the words left out.
_ROLES = {
    "x": ("x", "image", "images", "img", "imgs", "data", "feature", "features", "input", "inputs"),
    "y": ("y", "label", "labels", "target", "targets"),
}
SPLIT_WORDS = {
    "train": ("train", "training", "trainset", "trainingset"),
    "val": (
        *("val", "valid", "validation", "valset", "validationset"),
        *("dev", "devset", "development", "developmentset"),
        *("eval", "evalset", "evaluation", "holdout", "heldout", "holdoutset"),
    ),
    "test": ("test", "testing", "testset"),
}
_CLASSES = ("classes", "classnames")

Reader = H5 | Npz | Npy


class Place(NamedTuple):
    """An array of a file, by its name there."""

    file: Reader
    key: str

    @property
    def name(self) -> str:
        """For a message."""
        return self.key or "the array"


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
        slots = _given(named)
        plain = "x_val" not in slots and "x_test" not in slots
    elif path is None:
        raise InputError(f"arrays: no file given; name {KINDS} with --from FILE, or --x and --y")
    else:
        slots, plain = _searched(_opened(path))
    return _arranged(slots, task, channels_last, plain)


def _opened(path: Path, flag: str = "--from") -> Reader:
    if path.suffix.lower() not in READERS:
        raise fault(path, f"has suffix {path.suffix!r}", f"give {KINDS}")
    if not path.is_file():
        raise fault(path, "is not a file", f"name {KINDS} with {flag}")
    return READERS[path.suffix.lower()](path)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _synonyms() -> dict[str, str]:
    """The slot of every name, such as "x_train" of "trainimages"."""
    found = {word: role for role, words in _ROLES.items() for word in words}
    for (role, words), (split, others) in product(_ROLES.items(), SPLIT_WORDS.items()):
        for word, other in product(words, others):
            found[word + other] = found[other + word] = f"{role}_{split}"
    return found | dict.fromkeys(_CLASSES, "classes")


_SYNONYMS = _synonyms()
_OWN = ("x", "y", *(f"{role}_{split}" for split in SPLIT_WORDS for role in "xy"), "classes")


def _searched(file: Reader) -> tuple[dict[str, Place], bool]:
    """The arrays of a file by slot, ours by name, or else the only one that may be meant; and
    whether the names are plain."""
    slots = {name: Place(file, name) for name in _OWN if name in file.names}
    ours = "x" in slots and "y" in slots  # names that leave no doubt of what they are
    found: dict[str, list[str]] = {}
    for name in file.names:
        slot = _SYNONYMS.get(_plain(name))
        if slot is not None and slot not in slots:
            found.setdefault(slot, []).append(name)
    for slot, names in found.items():
        if ours and slot.endswith("_train") and len({"x_train", "y_train"} & {*found, *slots}) < 2:
            continue  # of one alone there is nothing to train on
        if len(names) > 1:
            what = f"has {' and '.join(names[:_LISTED])}, which may all be {slot}"
            raise fault(file.path, what, f"say which: {_by_name(file.path)}")
        slots[slot] = Place(file, names[0])
    plain = [slot for slot in ("x", "y") if slot in slots]
    split = [slot for slot in slots if slot not in ("x", "y", "classes")]
    trained = [slot for slot in split if slot.endswith("_train")]
    if plain and split and (len(plain) < 2 or trained):
        what = f"has both {slots[plain[0]].key} and {slots[(trained or split)[0]].key}"
        raise fault(file.path, what, f"say which: {_by_name(file.path)}")
    if plain and split:
        slots |= {f"{role}_train": slots.pop(role) for role in "xy"}
    for role in "xy":
        _need(file, slots, f"{role}_train" if split else role)
    for part in ("val", "test"):
        if f"x_{part}" in slots or f"y_{part}" in slots:
            _need(file, slots, f"x_{part}")
            _need(file, slots, f"y_{part}")
    _tell_unused(file, slots)
    full = {f"{slot}_train" if slot in ("x", "y") else slot: at for slot, at in slots.items()}
    return full, not split


def _tell_unused(file: Reader, slots: Mapping[str, Place]) -> None:
    """Arrays that may be features or labels too: those of as many rows, or with such names."""
    rows = {n for at in slots.values() for n in file.array(at.key).shape[:1]}
    used, told = {at.key for at in slots.values()}, []
    for name in [name for name in file.names if name not in used][:_LOOKED]:
        try:
            data = file.array(name)
        except InputError:
            continue
        turned = isinstance(file, H5) and file.matlab
        ends = {*data.shape[:1], *(data.shape[-1:] if turned else ())}
        if rows & ends or (data.ndim and _plain(name) in _SYNONYMS):
            told.append(f"{name[:40]} {data.dtype} {data.shape}")
    if told:
        more = [f"{len(told) - _LISTED} more"] * (len(told) > _LISTED)
        log.warning(
            "%s: not used: %s; %s takes them instead",
            file.path,
            ", ".join(told[:_LISTED] + more),
            _by_name(file.path),
        )


def _need(file: Reader, slots: Mapping[str, Place], slot: str) -> None:
    if slot not in slots:
        what = f"has no {slot} (it has {_contents(file)})"
        raise fault(file.path, what, f"name x and y so, or say {_by_name(file.path)}")


def _by_name(path: Path) -> str:
    return f"--x {path.name}:NAME --y FILE:NAME (and --x-test, --y-test, --x-val, --y-val)"


def _contents(file: Reader) -> str:
    """Names, types and shapes of a file's arrays, for a message."""
    told = []
    for name in list(file.names)[:_LISTED]:
        try:
            data = file.array(name)
        except InputError:
            told.append(name[:40])
        else:
            told.append(f"{name[:40]} {data.dtype} {data.shape}".strip())
    more = len(file.names) - _LISTED
    return ", ".join(told + [f"{more} more"] * (more > 0)) or "nothing"


def _given(named: Mapping[str, str]) -> dict[str, Place]:
    for x, y in zip(NAMED[::2], NAMED[1::2], strict=True):
        if (x in named) != (y in named) or ("x" not in named):
            has = next(iter(named))
            lack = x if x not in named else y
            lack = lack if "x" in named else "x"
            raise InputError(f"--{has} {named[has]}: give --{lack} FILE[:NAME] too")
    slots = {}
    for flag, text in named.items():
        role, _, split = flag.partition("-")
        slots[f"{role}_{split or 'train'}"] = _named(flag, text)
    return slots


def named_file(text: str) -> Path:
    """The file of FILE or FILE:NAME."""
    return Path(text if Path(text).is_file() or ":" not in text else text.rpartition(":")[0])


def _named(flag: str, text: str) -> Place:
    """An array by FILE or FILE:NAME."""
    name = str(named_file(text))
    key = text.rpartition(":")[2] if named_file(text) != Path(text) else ""
    file = _opened(Path(name), f"--{flag}")
    if key:
        plain = key.strip("/")
        # Of what lies behind a link the names are not listed.
        if plain not in file.names and not (isinstance(file, H5) and file.has(plain)):
            what = f"has no {key} (it has {_contents(file)})"
            raise fault(file.path, what, f"say --{flag} {name}:NAME")
        return Place(file, plain)
    names = list(file.names)
    role, _, split = flag.partition("-")
    if len(names) > 1:
        slots = (role, f"{role}_{split or 'train'}")
        names = [each for each in names if _SYNONYMS.get(_plain(each)) in slots]
    if len(names) != 1:
        what = f"does not say which of its arrays is {flag} ({_contents(file)})"
        raise fault(file.path, what, f"say --{flag} {name}:NAME")
    return Place(file, names[0])


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
        raise fault(place.file.path, f"{place.name} has shape ()", "store a row a sample")
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
    """The features as they are stored in shards; the training's changes are told."""
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

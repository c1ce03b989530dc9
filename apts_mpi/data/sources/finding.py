"""Which arrays of a file are meant: by the names that data sets are published with, or as asked."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

from apts_mpi.data.sources.hdf5 import H5
from apts_mpi.data.sources.npy import Npy, Npz
from apts_mpi.errors import InputError, fault

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
_LISTED = 8  # arrays that a message lists
_LOOKED = 100  # arrays of a file that are looked at to list them
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


def opened_file(path: Path, flag: str = "--from") -> Reader:
    """The reader of a file of arrays, by its suffix. Raises InputError."""
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


def searched(file: Reader) -> tuple[dict[str, Place], bool]:
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
    _warn_of_unused(file, slots)
    full = {f"{slot}_train" if slot in ("x", "y") else slot: at for slot, at in slots.items()}
    return full, not split


def _warn_of_unused(file: Reader, slots: Mapping[str, Place]) -> None:
    """Arrays that may be features or labels too: those of as many rows, or with such names."""
    rows = {n for at in slots.values() for n in file.array(at.key).shape[:1]}
    used, unused = {at.key for at in slots.values()}, []
    for name in [name for name in file.names if name not in used][:_LOOKED]:
        try:
            data = file.array(name)
        except InputError:
            continue
        turned = isinstance(file, H5) and file.matlab
        ends = {*data.shape[:1], *(data.shape[-1:] if turned else ())}
        if rows & ends or (data.ndim and _plain(name) in _SYNONYMS):
            unused.append(f"{name[:40]} {data.dtype} {data.shape}")
    if unused:
        more = [f"{len(unused) - _LISTED} more"] * (len(unused) > _LISTED)
        log.warning(
            "%s: not used: %s; %s takes them instead",
            file.path,
            ", ".join(unused[:_LISTED] + more),
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
    arrays = []
    for name in list(file.names)[:_LISTED]:
        try:
            data = file.array(name)
        except InputError:
            arrays.append(name[:40])
        else:
            arrays.append(f"{name[:40]} {data.dtype} {data.shape}".strip())
    more = len(file.names) - _LISTED
    return ", ".join(arrays + [f"{more} more"] * (more > 0)) or "nothing"


def given(named: Mapping[str, str]) -> dict[str, Place]:
    """The arrays that the user names, by slot ("x_train"). Raises InputError."""
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
    file = opened_file(Path(name), f"--{flag}")
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

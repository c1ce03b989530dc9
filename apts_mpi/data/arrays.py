"""The user's own arrays, from .npz or HDF5; nothing in the file is trusted or unpickled."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.checks import check_features, check_labels, check_names, check_targets
from apts_mpi.data.format import DAMAGE, fault, is_inside

NAMES = ("x", "y", "x_train", "y_train", "x_test", "y_test", "classes")
WANTED = "store x and y, or x_train, y_train, x_test and y_test"
# deflate cannot pack tighter than about 1032 to 1: a file claiming more is no honest file.
EXPANSION = 1100
_HEADER = 512  # characters of an array's header, which Python's parser reads; most have 118
# What the archive's and the header's readers raise for damage besides.
_DAMAGE = (*DAMAGE, EOFError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error)

Array = NDArray[Any]


class Arrays(NamedTuple):
    """Features as stored and labels as class indices, int64, or targets (n, outputs), float32; no
    test arrays when there was no split."""

    x_train: Array
    y_train: Array
    x_test: Array | None
    y_test: Array | None
    classes: tuple[str, ...]


def read_arrays(path: Path, *, task: str = "classification") -> Arrays:
    """Read `x`, `y` or `x_train`, `y_train`, `x_test`, `y_test`, with optional `classes` (names).

    Labels are whole numbers >= 0. Without `classes` the sorted labels found in training become
    the classes; with it they are indices into it. Of the task "regression" `y` are real targets
    (n,) or (n, outputs) instead, and there are no classes. Raises InputError.
    """
    readers = {".npz": _read_npz, ".h5": _read_h5, ".hdf5": _read_h5}
    if path.suffix not in readers:
        raise fault(path, f"has suffix {path.suffix!r}", "give a .npz or .h5 file")
    if not path.is_file():
        raise fault(path, "is not a file", "name the .npz or .h5 file with --from")
    try:
        found, present = readers[path.suffix](path)
    except _DAMAGE as exc:
        detail = " ".join(str(exc).split())[:200] or type(exc).__name__
        raise fault(path, f"cannot be read ({detail})", f"save a {path.suffix} file anew") from exc
    return _arranged(path, found, present, task)


def _arranged(path: Path, found: dict[str, Array], present: list[str], task: str) -> Arrays:
    plain = [name for name in ("x", "y") if name in found]
    split = [name for name in ("x_train", "y_train", "x_test", "y_test") if name in found]
    if plain and split:
        raise fault(path, f"has both {plain[0]} and {split[0]}", WANTED)
    wanted = ("x", "y") if plain else ("x_train", "y_train", "x_test", "y_test")
    missing = [name for name in wanted if name not in found]
    if missing:
        has = ", ".join(name[:40] for name in present[:20]) or "nothing"
        raise fault(path, f"has no {missing[0]} (it has {has})", WANTED)
    regression = task == "regression"
    if regression and "classes" in found:
        raise fault(path, "has classes, which a regression has not", "remove them")
    classes = _class_names(path, found["classes"]) if "classes" in found else None
    pairs = []
    for x_name, y_name in zip(wanted[::2], wanted[1::2], strict=True):
        x = check_features(path, x_name, found[x_name])
        if regression:
            y = check_targets(path, y_name, found[y_name], len(x))
        else:
            most = None if classes is None else len(classes)
            y = check_labels(path, y_name, found[y_name], len(x), most)
        pairs.append((x, y))
    x, y = pairs[0]
    x_test, y_test = pairs[1] if len(pairs) > 1 else (None, None)
    if regression:
        return Arrays(x, y, x_test, y_test, ())
    if classes is None:
        known, y = np.unique(y, return_inverse=True)
        if y_test is not None:
            unknown = np.setdiff1d(y_test, known)
            if len(unknown):
                lack = f"y_test holds label {unknown[0]}, absent from y_train"
                raise fault(path, lack, "drop or relabel those samples")
            y_test = np.searchsorted(known, y_test)
        classes = tuple(str(label) for label in known)
    return Arrays(x, y, x_test, y_test, classes)


def _class_names(path: Path, names: Array) -> tuple[str, ...]:
    if names.dtype.kind not in "USO" or names.ndim != 1:
        raise fault(path, f"classes is {names.dtype} of shape {names.shape}", "store a row of text")
    try:
        texts = [n.decode() if isinstance(n, bytes) else str(n) for n in names.tolist()]
    except UnicodeDecodeError as exc:
        raise fault(path, f"classes holds no text ({exc})", "store names in UTF-8") from exc
    return check_names(path, path.stem, texts)


def _check_size(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, held: int) -> None:
    claimed = math.prod(shape) * max(dtype.itemsize, 1)  # text of no length takes room here
    if claimed > EXPANSION * held:
        raise fault(
            path,
            f"{name} claims shape {shape} ({claimed} bytes) but {held} bytes are stored",
            "save the array anew",
        )


def _read_npz(path: Path) -> tuple[dict[str, Array], list[str]]:
    """The arrays we know, their headers compared with the archive's sizes, and all names."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name not in NAMES or name == member.filename:
                archive.open(member).close()  # a damaged name is not as it stands before the data
                continue
            if name in found:
                raise fault(path, f"holds {name} twice", "save it anew")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # They can claim any memory to unpack a little.
                raise fault(path, f"{name} is packed as numpy never does", "save it anew")
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read_header = _header_reader(version)
                shape, _, dtype = read_header(stream, max_header_size=_HEADER)
                body = math.prod(shape) * dtype.itemsize
                if dtype.hasobject:
                    raise fault(path, f"{name} is an object array", "store plain numbers")
                _check_size(path, name, shape, dtype, min(member.compress_size, _size(path)))
                if stream.tell() + body != member.file_size:
                    raise fault(
                        path, f"{name} claims {body} bytes, not what is stored", "save it anew"
                    )
            with archive.open(member) as stream:
                found[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return found, [name.removesuffix(".npy") for name in archive.namelist()]


def _header_reader(version: tuple[int, int]) -> Callable:
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0
    raise ValueError(f"npy version {version}")


def _size(path: Path) -> int:
    return path.stat().st_size


def _read_h5(path: Path) -> tuple[dict[str, Array], list[str]]:
    """The data sets we know, which must lie in this very file, and the names of all."""
    found: dict[str, Array] = {}
    with h5py.File(path, "r") as file:
        present = list(file)
        for name in NAMES:
            if name not in present:
                continue
            if not is_inside(file, name):
                raise fault(path, f"{name} is a link", "copy the data into its place")
            data = file[name]
            if not isinstance(data, h5py.Dataset):
                raise fault(path, f"{name} is no data set", "store plain numbers")
            if data.dtype.kind == "O":
                if h5py.check_string_dtype(data.dtype) is None:
                    raise fault(path, f"{name} is an object array", "store plain numbers")
                if name != "classes":
                    raise fault(path, f"{name} holds text", "store plain numbers")
            if data.shape is None or data.is_virtual or data.external:
                raise fault(path, f"{name} is not stored in this file", "copy the data into it")
            _check_size(
                path, name, data.shape, data.dtype, min(data.id.get_storage_size(), _size(path))
            )
            found[name] = data.asstr()[:] if data.dtype.kind == "O" else data[()]
    return found, present

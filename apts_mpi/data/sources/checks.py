"""Checks on arrays that come from outside, each refusal one line with name, value and remedy."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.errors import fault
from apts_mpi.files.hdf5 import DAMAGE

# deflate cannot pack tighter than about 1032 to 1: a file claiming more is no honest file.
EXPANSION = 1100
# What the readers of an archive and of an array's header raise for damage besides.
_DAMAGE = (*DAMAGE, EOFError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error)


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """All damage met inside becomes one InputError that names the file."""
    try:
        yield
    except _DAMAGE as exc:
        detail = " ".join(str(exc).split())[:200] or type(exc).__name__
        raise fault(path, f"cannot be read ({detail})", f"save a {path.suffix} file anew") from exc


def check_size(
    where: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], held: int
) -> None:
    """Refuse an array that claims more bytes than the `held` ones can be unpacked to."""
    claimed = math.prod(shape) * max(dtype.itemsize, 1)  # text of no length takes room here
    if claimed > EXPANSION * held:
        what = f"{name} claims shape {shape} ({claimed} bytes) but {held} bytes are stored"
        raise fault(where, what, "save the array anew")


def may_be_channels_last(shape: Sequence[int]) -> bool:
    """Whether samples of that shape may be images (h, w, channels) of unusual channels: a square
    before a shorter axis, where channels first would be as many as there are rows."""
    return len(shape) == 3 and shape[0] == shape[1] > max(4, shape[2]) and shape[2] > 1


def check_kind(where: Path | str, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse what are no features: (n, *sample_shape) of a real type."""
    if dtype.kind not in "buif":
        raise fault(where, f"{name} has dtype {dtype}", "store real numbers")
    if len(shape) < 2 or 0 in shape:
        raise fault(where, f"{name} has shape {shape}", "store samples by features, none empty")


def check_features(
    where: Path | str, name: str, x: NDArray[Any], *, first: int = 0
) -> NDArray[Any]:
    """Features (n, *sample_shape), C-contiguous: uint8 is kept, other real types made float32.

    `first` is the number of the first sample, where they are a part.
    """
    check_kind(where, name, x.shape, x.dtype)
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(x, dtype="<f4")
    good = np.isfinite(single)
    if not good.all():
        at = tuple(int(i) for i in np.argwhere(~good)[0])
        place = [at[0] + first, *at[1:]]
        # A finite value here is one that float32 cannot hold.
        raise fault(where, f"{name}{place} is {x[at]}", "remove, impute or rescale such features")
    return single


def check_labels(
    where: Path | str, name: str, y: NDArray[Any], samples: int, classes: int | None = None
) -> NDArray[np.int64]:
    """Labels (n,), int64, one per sample and >= 0, below `classes` if given.

    Floats are taken when they are whole numbers.
    """
    if y.dtype.kind not in "buif" or y.ndim != 1:
        raise fault(where, f"{name} is {y.dtype} of shape {y.shape}", "store a row of integers")
    if len(y) != samples:
        raise fault(
            where, f"{name} has {len(y)} labels for {samples} samples", "give one label per sample"
        )
    # In half precision the comparisons below would overflow.
    numbers = y.astype({"b": np.int64, "f": np.float64}.get(y.dtype.kind, y.dtype))
    top = 2**53 if classes is None else classes - 1
    # A NaN fails the comparison too.
    bad = numbers[~((numbers >= 0) & (numbers <= top) & (numbers == np.floor(numbers)))]
    if len(bad):
        to = "" if classes is None else f" to {top}"
        raise fault(where, f"{name} holds label {bad[0]}", f"labels are whole numbers from 0{to}")
    return np.ascontiguousarray(numbers, dtype="<i8")


def check_targets(where: Path | str, name: str, y: NDArray[Any], samples: int) -> NDArray[Any]:
    """Targets of a regression, float32 (n, outputs), from real numbers (n,) or (n, outputs)."""
    if y.dtype.kind not in "buif" or y.ndim not in (1, 2) or 0 in y.shape:
        raise fault(where, f"{name} is {y.dtype} of shape {y.shape}", "store samples by outputs")
    if len(y) != samples:
        what = f"{name} has {len(y)} targets for {samples} samples"
        raise fault(where, what, "give targets for every sample")
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(y.reshape(samples, -1), dtype="<f4")
    good = np.isfinite(single)
    if not good.all():
        row, output = (int(i) for i in np.argwhere(~good)[0])
        value = y.reshape(samples, -1)[row, output]
        raise fault(where, f"{name}[{row}, {output}] is {value}", "remove or rescale such targets")
    wide = y.reshape(samples, -1).astype(np.float64)
    mean, spread = wide.mean(axis=0), wide.std(axis=0)
    lost = np.abs(single - wide).max(axis=0)
    # Below a billionth of the mean it is a constant, but for how it was computed.
    poor = np.flatnonzero((lost > 0.01 * spread) & (spread > 1e-9 * np.abs(mean)))
    if len(poor):
        k = int(poor[0])
        what = f"{name}[:, {k}] varies by {spread[k]:.3g} about {mean[k]:.6g}, finer than float32"
        raise fault(where, what, "subtract a constant from such targets")
    return single


def check_names(
    where: Path | str, name: str, classes: Sequence[object], *, least: int = 2
) -> tuple[str, ...]:
    """The data set name and so many or more distinct class names, printable."""
    if not name or not name.isprintable():
        raise fault(where, f"data set name {name!r}", "give a printable name")
    if len(classes) < least:
        raise fault(where, f"{len(classes)} classes", "a classification needs two or more")
    names: dict[str, None] = {}
    for text in classes:
        if not (isinstance(text, str) and text and text.isprintable()):
            raise fault(where, f"class name {str(text)[:80]!r}", "give printable text")
        if text in names:
            what = f"class name {text[:80]!r} is there twice"
            raise fault(where, what, "give each class its own")
        names[text] = None
    return tuple(names)

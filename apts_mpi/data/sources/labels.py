"""Labels as data sets have them: numbers, text, columns of them, or one-hot; made class indices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.sources.checks import check_names
from apts_mpi.data.sources.stored import Stored
from apts_mpi.errors import fault

_LARGEST = 2**53  # up to which every whole number has its float
# More numbers than the first, each with fewer samples than the second, are measured, not classes.
_MANY, _FEW = 50, 5
_FORMS = "give labels (n,) or (n, 1), numbers or text, or one-hot rows, or say --task regression"


class Labels(NamedTuple):
    """Labels (n,), int64: as they are, or numbers of `texts` or of `columns` of one-hot rows."""

    where: Path
    name: str
    values: NDArray[np.int64]
    texts: tuple[str, ...] | None = None
    columns: int = 0


def plain_shape(shape: tuple[int, ...], samples: int) -> tuple[int, ...]:
    """The shape of so many labels or targets without axes that are of length 1."""
    if shape == (1, samples):
        return (samples,)
    return (*shape[:1], *(side for side in shape[1:] if side != 1))


def read_labels(where: Path, name: str, y: Stored, samples: int) -> Labels:
    """Read and check them. Raises InputError."""
    shape = plain_shape(y.shape, samples)
    if y.dtype.kind not in "buifUSO" or len(shape) not in (1, 2) or 0 in shape:
        raise fault(where, f"{name} is {y.dtype} of shape {y.shape}", _FORMS)
    if shape[0] != samples:
        what = f"{name} has {shape[0]} labels for {samples} samples"
        raise fault(where, what, "give one label per sample")
    one_hot = len(shape) == 2
    if one_hot and y.dtype.kind in "USO":
        raise fault(where, f"{name} is text of shape {y.shape}", "give one label per sample")
    values = np.empty(samples, dtype=np.int64)
    known: dict[str, int] = {}
    at = 0
    for block in y.blocks():
        rows = block.reshape(-1, *shape[1:])
        if one_hot:
            found = _hot(where, name, rows, at)
        elif y.dtype.kind in "USO":
            found = _texts(where, name, rows, known)
        else:
            found = _whole(where, name, rows, at)
        values[at : at + len(rows)] = found
        at += len(rows)
    texts = tuple(known) if y.dtype.kind in "USO" else None
    return Labels(where, name, values, texts, shape[1] if one_hot else 0)


def _whole(where: Path, name: str, block: NDArray[Any], first: int) -> NDArray[Any]:
    # In half precision what they are compared with would overflow.
    numbers = block.astype({"b": np.int64, "f": np.float64}.get(block.dtype.kind, block.dtype))
    # A NaN fails the comparison too.
    good = (numbers >= -_LARGEST) & (numbers <= _LARGEST) & (numbers == np.floor(numbers))
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        what = f"{name} holds label {numbers[row]} in row {first + row}"
        remedy = "labels are whole numbers or text; or say --task regression"
        raise fault(where, what, "remove such samples" if np.isnan(numbers[row]) else remedy)
    return numbers


def _hot(where: Path, name: str, block: NDArray[Any], first: int) -> NDArray[Any]:
    good = ((block == 0) | (block == 1)).all(axis=1) & ((block == 1).sum(axis=1) == 1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        what = f"{name} has {block.shape[1]} columns, and row {first + row} is not one-hot"
        raise fault(where, f"{what}: {block[row, :8].tolist()}", _FORMS)
    return block.argmax(axis=1)


def _texts(where: Path, name: str, block: NDArray[Any], known: dict[str, int]) -> NDArray[Any]:
    try:
        words = [t.decode() if isinstance(t, bytes) else str(t) for t in block.tolist()]
    except UnicodeDecodeError as exc:
        raise fault(where, f"{name} holds no text ({exc})", "store labels in UTF-8") from exc
    return np.array([known.setdefault(word, len(known)) for word in words], dtype=np.int64)


def numbered(
    parts: Sequence[Labels], classes: tuple[str, ...] | None
) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """Class indices of each part, the first of which is the training's, and the class names.

    Without `classes` they are the sorted labels found in training, or the columns of one-hot rows.
    With them labels are their indices, from 0, or from 1 where all of these are there and no 0 is;
    or their names. Raises InputError.
    """
    first = parts[0]
    for each in parts:
        if (each.texts is None, each.columns) != (first.texts is None, first.columns):
            what = f"{first.name} and {each.name} hold labels of different kinds"
            raise fault(each.where, what, "make one kind")
    if first.texts is not None:
        return _of_texts(parts, classes)
    if first.columns and classes is None:
        classes = tuple(map(str, range(first.columns)))
    if classes is not None:
        return _of_indices(parts, classes)
    known = np.unique(first.values)
    if len(known) > _MANY and len(first.values) < _FEW * len(known):
        what = f"{first.name} has {len(known)} distinct values in {len(first.values)} samples"
        raise fault(first.where, what, "say --task regression, or give `classes`, their names")
    for each in parts[1:]:
        unknown = np.setdiff1d(each.values, known)
        if len(unknown):
            lack = f"{each.name} holds label {unknown[0]}, absent from {first.name}"
            raise fault(each.where, lack, "drop or relabel those samples")
    numbers = [np.searchsorted(known, each.values) for each in parts]
    return numbers, tuple(str(label) for label in known)


def _of_indices(
    parts: Sequence[Labels], classes: tuple[str, ...]
) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    count = len(classes)
    if parts[0].columns not in (0, count):
        what = f"{parts[0].name} has {parts[0].columns} columns for {count} classes"
        raise fault(parts[0].where, what, "give each class a column")
    found = np.unique(np.concatenate([each.values for each in parts]))
    base = int(np.array_equal(found, np.arange(1, count + 1)))
    for each in parts:
        wrong = each.values[(each.values < base) | (each.values >= count + base)]
        if len(wrong):
            what = f"{each.name} holds label {wrong[0]}"
            raise fault(each.where, what, f"labels are whole numbers from 0 to {count - 1}")
    return [each.values - base for each in parts], classes


def _of_texts(
    parts: Sequence[Labels], classes: tuple[str, ...] | None
) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    first = parts[0]
    assert first.texts is not None, "asked before"
    names = tuple(sorted(first.texts)) if classes is None else classes
    index = {name: k for k, name in enumerate(names)}
    numbers = []
    for each in parts:
        assert each.texts is not None, "asked before"
        for text in each.texts:
            if text not in index:
                absent = f"absent from {first.name}" if classes is None else "which is no class"
                what = f"{each.name} holds label {text[:80]!r}, {absent}"
                raise fault(each.where, what, "drop or relabel those samples")
        numbers.append(np.array([index[text] for text in each.texts], dtype=np.int64)[each.values])
    check_names(first.where, first.where.stem, names)
    return numbers, names

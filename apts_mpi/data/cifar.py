"""CIFAR-10 in its binary layout: five files of training records and one of test records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.format import fault

FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"
NAMES = "batches.meta.txt"
SHAPE = (3, 32, 32)  # red, green, blue; each row by row
RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the pixels
CLASSES = 10
NAMES_LIMIT = 4096  # bytes; the original file has 61
AGAIN = "unpack cifar-10-binary.tar.gz again"

Bytes = NDArray[np.uint8]


def find_cifar10(folder: Path) -> Path:
    """The folder of the files: this one, or the one in it that the archive unpacks to.

    Raises InputError where there is neither.
    """
    inside = folder / FOLDER
    if not folder.is_dir():
        raise fault(
            folder, "is not a folder", f"name {FOLDER}, or the folder it is in, with --from"
        )
    return inside if inside.is_dir() and not (folder / TEST).exists() else folder


def read_cifar10(
    folder: Path,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], tuple[str, ...]]:
    """Images (n, 3, 32, 32) and labels (n,) of training, then of the test; the class names.

    `folder` holds the six files, or holds the folder of them. Raises InputError.
    """
    folder = find_cifar10(folder)
    parts = [read_records(folder / name) for name in TRAIN]
    x_test, y_test = read_records(folder / TEST)
    x_train, y_train = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return x_train, y_train, x_test, y_test, _names(folder / NAMES)


def read_records(path: Path) -> tuple[Bytes, Bytes]:
    """Images and labels of one file. Raises InputError."""
    if not path.exists():
        raise fault(path, "is missing", f"name the folder of all six files with --from, or {AGAIN}")
    if not path.is_file():
        raise fault(path, "is not a file", AGAIN)
    try:
        size = path.stat().st_size
        if not size or size % RECORD:
            raise fault(path, f"has {size} bytes, not records of {RECORD}", AGAIN)
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as exc:
        raise fault(path, f"cannot be read ({exc})", AGAIN) from exc
    records = content.reshape(-1, RECORD)
    labels = records[:, 0]
    wrong = np.flatnonzero(labels >= CLASSES)
    if len(wrong):
        raise fault(
            path,
            f"record {wrong[0]} has label {labels[wrong[0]]}",
            f"labels are 0 to {CLASSES - 1}; {AGAIN}",
        )
    return records[:, 1:].reshape(-1, *SHAPE), labels.copy()


def _names(path: Path) -> tuple[str, ...]:
    """Class names, a line each; numbers where the file is not there."""
    if not path.exists():
        return tuple(str(number) for number in range(CLASSES))
    if not path.is_file():  # to open a pipe would wait for a writer
        raise fault(path, "is not a file", "mend it, or remove it")
    try:
        with path.open("rb") as file:
            text = file.read(NAMES_LIMIT).decode("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise fault(path, f"cannot be read ({exc})", "mend it, or remove it") from exc
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != CLASSES:
        raise fault(path, f"names {len(names)} classes, not {CLASSES}", "mend it, or remove it")
    return names

"""CIFAR-10 in its binary layout, five files of training and one of test records; its download."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.sources.cache import downloaded
from apts_mpi.errors import InputError, fault
from apts_mpi.files.sealed import sync

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
DOWNLOAD_LIMIT = 192 * 1024 * 1024  # bytes; the archive has 170 million
FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"
NAMES = "batches.meta.txt"
SHAPE = (3, 32, 32)  # red, green, blue; each row by row
RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the pixels
RECORDS = 10_000  # of a file of the original
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


def fetch_cifar10(folder: Path) -> None:
    """Download the archive and unpack it into `folder`, where its files are not there yet.

    They appear there all at once, verified. A folder that lacks some of them is an InputError and
    left alone, as is everything wrong with what comes over the network.
    """
    target = folder / FOLDER
    try:
        if target.exists() or (folder / TEST).exists():
            place = find_cifar10(folder)
            for name in (*TRAIN, TEST):
                if not (place / name).is_file():
                    raise fault(
                        place, f"has no {name}", "remove the folder, or choose another --from"
                    )
            return
        folder.mkdir(parents=True, exist_ok=True)
        otherwise = "fetch it elsewhere, unpack it, and name its folder with --from"
        with downloaded(URL, folder, limit=DOWNLOAD_LIMIT, otherwise=otherwise, md5=MD5) as archive:
            scratch = Path(tempfile.mkdtemp(prefix=f".{FOLDER}.tmp-", dir=folder))
            try:
                _unpack(archive, scratch)
                scratch.chmod(0o755)
                os.rename(scratch, target)
                sync(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as exc:
        raise fault(folder, f"cannot be written ({exc})", "choose another --from") from exc


def _unpack(archive: Path, folder: Path) -> None:
    """The files that are to be in the archive, and nothing else that may be in it."""
    wanted = {f"{FOLDER}/{name}": RECORDS * RECORD for name in (*TRAIN, TEST)}
    wanted[f"{FOLDER}/{NAMES}"] = NAMES_LIMIT
    found: set[str] = set()
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                size = wanted.get(member.name)
                if size is None:
                    continue
                exact = member.name != f"{FOLDER}/{NAMES}"
                if not member.isreg() or member.size > size or (exact and member.size != size):
                    raise InputError(f"{URL}: {member.name} is not a file of {size} bytes")
                if member.name in found:
                    raise InputError(f"{URL}: holds {member.name} twice")
                found.add(member.name)
                stream = members.extractfile(member)
                assert stream is not None, "a regular file has content"
                _keep(stream, folder / member.name.rsplit("/", 1)[-1])
    except (tarfile.TarError, EOFError, zlib.error) as exc:
        raise InputError(f"{URL}: cannot be unpacked ({exc})") from exc
    if missing := sorted(set(wanted) - found):
        raise InputError(f"{URL}: has no {missing[0]}")


def _keep(stream: IO[bytes], path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file)
        file.flush()
        os.fsync(file.fileno())

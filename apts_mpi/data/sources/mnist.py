"""MNIST in its IDX files, plain or gzipped, and its download."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.sources.cache import downloaded
from apts_mpi.data.sources.checks import EXPANSION
from apts_mpi.errors import InputError, fault
from apts_mpi.files.sealed import sync

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
# name: dimensions, and md5 of the unpacked file
FILES = {
    "train-images-idx3-ubyte": (3, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": (1, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": (3, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": (1, "27ae3e4e09519cfbb04c329615203637"),
}
DOWNLOAD_LIMIT = 32 * 1024 * 1024  # bytes; the largest file has 10 million
LARGEST = 64 * 1024 * 1024  # bytes; the largest file, unpacked, has 47 million
ROOM = 64 * 1024  # bytes that a file may have besides its data, and an eighth of those
AGAIN = "fetch it again with --download"

Bytes = NDArray[np.uint8]


def read_idx(path: Path, dimensions: int, *, md5: str | None = None) -> Bytes:
    """Read an IDX file of unsigned bytes, gzipped when its first bytes say so.

    Returns uint8 of `dimensions` dimensions. No more is read or allocated than the header
    claims, and no more is claimed than the file can hold. With `md5`, the unpacked file must have
    that checksum. Raises InputError.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise fault(path, f"has {size} bytes, more than any file of MNIST", AGAIN)
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            # GzipFile reads like a file but is not typed as one.
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else cast(BinaryIO, raw)
            header = stream.read(4 + 4 * dimensions)
            shape = _shape(path, header, dimensions)
            claimed = math.prod(shape)
            if claimed > min(size * (EXPANSION if packed else 1), LARGEST):
                raise fault(path, f"claims {claimed} bytes of data but has {size}", AGAIN)
            if size > claimed + claimed // 8 + ROOM:  # gzip looks at zeros behind it one by one
                raise fault(path, f"holds more than the {claimed} bytes it claims", AGAIN)
            body = stream.read(claimed)
            if len(body) < claimed or stream.read(1):
                order = "less" if len(body) < claimed else "more"
                raise fault(path, f"holds {order} than the {claimed} bytes it claims", AGAIN)
    except (OSError, EOFError, zlib.error) as exc:
        raise fault(path, f"cannot be read ({exc})", AGAIN) from exc
    if md5 is not None:
        found = hashlib.md5(header + body, usedforsecurity=False).hexdigest()
        if found != md5:
            raise fault(
                path,
                f"has md5 {found}, which is not the canonical MNIST file's",
                "fetch that with --download, or use your own data through `arrays`",
            )
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    if len(header) < 4 + 4 * dimensions or header[:3] != b"\0\0\x08" or header[3] != dimensions:
        raise fault(
            path,
            f"starts with {header[:4].hex() or 'nothing'}, not {0x800 + dimensions:08x} "
            f"of an IDX file with {dimensions} dimensions",
            AGAIN,
        )
    return struct.unpack(f">{dimensions}I", header[4:])


def read_mnist(folder: Path) -> tuple[NDArray[Any], ...]:
    """The four files: images (n, 1, 28, 28) and labels (n,) of training, then of the test."""
    if not folder.is_dir():
        raise fault(folder, "is not a folder", "name the folder of the four files with --from")
    train_x, train_y, test_x, test_y = (
        read_idx(_find(folder, name), dimensions, md5=md5)
        for name, (dimensions, md5) in FILES.items()
    )
    return train_x[:, None], train_y, test_x[:, None], test_y


def _candidates(folder: Path, name: str) -> list[Path]:
    spellings = (name, name.replace("-idx", ".idx"))
    return [folder / (spelling + end) for spelling in spellings for end in ("", ".gz")]


def _find(folder: Path, name: str) -> Path:
    for path in _candidates(folder, name):
        if path.is_file():
            return path
    raise fault(folder, f"has no {name} or {name}.gz", "add it, or fetch it with --download")


def fetch_mnist(folder: Path) -> None:
    """Download the files that are not in `folder` yet; each appears there only once verified.

    A file that is there but is not the canonical one is an InputError, not replaced.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (dimensions, md5) in FILES.items():
            if not any(path.is_file() for path in _candidates(folder, name)):
                _fetch(f"{MIRROR}{name}.gz", folder / f"{name}.gz", dimensions, md5)
    except OSError as exc:
        raise fault(folder, f"cannot be written ({exc})", "choose another --from") from exc


def _fetch(url: str, target: Path, dimensions: int, md5: str) -> None:
    otherwise = "fetch the four files elsewhere, and name their folder with --from"
    with downloaded(url, target.parent, limit=DOWNLOAD_LIMIT, otherwise=otherwise) as path:
        try:
            read_idx(path, dimensions, md5=md5)
        except InputError as exc:
            text = str(exc).split("; ")[0].replace(str(path), url)
            raise InputError(f"{text}; the mirror is at fault, try again later") from exc
        sync(path)
        path.chmod(0o644)
        path.replace(target)

"""Arrays in .npy files and .npz archives, whose headers are compared with what is stored."""

from __future__ import annotations

import math
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.sources.checks import check_size, sound
from apts_mpi.data.sources.stored import BLOCK, Stored, rows_of_block
from apts_mpi.errors import fault

_HEADER = 512  # characters of an array's header, which Python's parser reads; most have 118

Array = NDArray[Any]


class Npz:
    """An archive of arrays."""

    def __init__(self, path: Path) -> None:
        """Raises InputError where it is none."""
        self.path = path
        with sound(path), zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                archive.open(entry).close()  # a damaged name is not as it stands before the data
            found = Counter(archive.namelist())
        self._count = {
            name.removesuffix(".npy"): n for name, n in found.items() if name[-4:] == ".npy"
        }

    @property
    def names(self) -> list[str]:
        """Of the arrays in it."""
        return list(self._count)

    def array(self, name: str) -> Stored:
        """One of them, not read yet. Raises InputError."""
        path, member = self.path, f"{name}.npy"
        if self._count[name] > 1:
            raise fault(path, f"holds {name} twice", "save it anew")
        with sound(path), zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(member)
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # They can claim any memory to unpack a little.
                raise fault(path, f"{name} is packed as numpy never does", "save it anew")
            with archive.open(entry) as stream:
                head = _header(path, name, stream)
                held = min(entry.compress_size, path.stat().st_size)
                _check(path, name, head, held, entry.file_size - stream.tell())

        def read() -> Iterator[Array]:
            with sound(path), zipfile.ZipFile(path) as archive, archive.open(member) as stream:
                if _header(path, name, stream) != head:
                    raise fault(path, "has changed while it was read", "make the shards again")
                yield from _blocks(stream, *head)

        return Stored(head[0], head[2], read)


class Npy:
    """A file of one array, which has no name."""

    names = ("",)

    def __init__(self, path: Path) -> None:
        self.path = path

    def array(self, name: str = "") -> Stored:
        """The array, not read yet. Raises InputError."""
        path = self.path
        with sound(path), path.open("rb") as stream:
            head = _header(path, "it", stream)
            held = os.fstat(stream.fileno()).st_size - stream.tell()
            _check(path, "it", head, held, held)

        def read() -> Iterator[Array]:
            with sound(path), path.open("rb") as stream:
                if _header(path, "it", stream) != head:
                    raise fault(path, "has changed while it was read", "make the shards again")
                yield from _blocks(stream, *head)

        return Stored(head[0], head[2], read)


_Head = tuple[tuple[int, ...], bool, np.dtype[Any]]  # shape, Fortran order, type


def _header(path: Path, name: str, stream: IO[bytes]) -> _Head:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_HEADER)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream, max_header_size=_HEADER)
    else:
        raise ValueError(f"npy version {version}")
    if min(shape, default=0) < 0:
        raise ValueError(f"shape {shape}")
    if dtype.hasobject:
        remedy = "save text with .astype(str), or numbers with .astype(float)"
        raise fault(path, f"{name} is an object array", remedy)
    if dtype.names or dtype.subdtype:
        raise fault(path, f"{name} is of type {dtype}"[:200], "store plain numbers")
    return tuple(map(int, shape)), fortran and len(shape) > 1, dtype


def _check(path: Path, name: str, head: _Head, held: int, body: int) -> None:
    shape, _, dtype = head
    check_size(path, name, shape, dtype, held)
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != body:
        raise fault(path, f"{name} claims {claimed} bytes, not what is stored", "save it anew")


def _blocks(
    stream: IO[bytes], shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any]
) -> Iterator[Array]:
    rows, row = shape[0], shape[1:]
    step = rows_of_block(row, dtype)
    if not fortran:
        for start in range(0, rows, step):
            size = (min(step, rows - start), *row)
            yield np.frombuffer(_exactly(stream, math.prod(size) * dtype.itemsize), dtype).reshape(
                size
            )
        return
    # Rows lie across the whole: it is unpacked, to disk if it is large, to be read in strips.
    values = math.prod(row)
    with tempfile.SpooledTemporaryFile(max_size=BLOCK) as plain:
        left = math.prod(shape) * dtype.itemsize
        while left:
            left -= plain.write(_exactly(stream, min(left, BLOCK)))
        for start in range(0, rows, step):
            many = min(step, rows - start)
            strips = np.empty((values, many), dtype)
            for value in range(values):
                plain.seek((value * rows + start) * dtype.itemsize)
                strips[value] = np.frombuffer(plain.read(many * dtype.itemsize), dtype)
            yield strips.reshape(*row[::-1], many).T


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError(f"{size - len(content)} bytes are missing")
    return content

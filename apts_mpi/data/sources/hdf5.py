"""Arrays in HDF5 files, MATLAB's among them, read wherever a link of theirs leads."""

from __future__ import annotations

import logging
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.sources.checks import check_size, sound
from apts_mpi.data.sources.stored import Stored, rows_of_block
from apts_mpi.errors import fault

log = logging.getLogger("apts_mpi")

_LARGE = 256 * 2**20  # bytes of a chunk, which HDF5 unpacks whole, that are reported
_CHUNK = 2**17  # values of a smaller one
_DEEPEST = 3  # groups that are looked into for data sets
_MOST = 1000  # names that are looked at
_HOPS = 8  # links that lead from one to the next
_TEXTS = 256  # of any length that are read at a time

Array = NDArray[Any]


class _Dangling(Exception):
    """A link leads to a place that a file has not."""

    def __init__(self, path: Path, place: str) -> None:
        super().__init__(path, place)
        self.path, self.place = path, place


class H5:
    """A file of data sets. Those of MATLAB have their axes reversed, as it writes them."""

    def __init__(self, path: Path) -> None:
        """Raises InputError where it is none."""
        self.path, self.matlab = path, path.suffix.lower() == ".mat"
        with self._open(path) as file:
            self.names = _names(file)

    def has(self, name: str) -> bool:
        """Whether a data set has that name, or a link on the way to it may lead to one."""
        with self._open(self.path) as file:
            try:
                link, *_ = _first_link(file, name)
                return link is not None or isinstance(file[name], h5py.Dataset)
            except KeyError:
                return False

    @contextmanager
    def _open(self, path: Path) -> Iterator[h5py.File]:
        with sound(path):
            if self.matlab and not h5py.is_hdf5(path):
                raise fault(path, "is no HDF5 file", "save it in MATLAB with save(..., '-v7.3')")
            with h5py.File(path, "r") as file:
                yield file

    def array(self, name: str, *, last: bool = False) -> Stored:
        """A data set, not read yet; `last`: its samples are on the last axis of MATLAB's array.

        Links within the file are followed, and those to files beside it. Raises InputError.
        """
        try:
            path, place = self._found(name)
        except _Dangling as exc:
            at = "" if exc.path == self.path else f" in {exc.path.name}"
            what = f"{name} is a link to /{exc.place}{at}, which is not there"
            raise fault(
                self.path, f"cannot be read: {what}", "mend the link, or name another array"
            ) from exc
        with self._open(path) as file:
            data = file[place]
            self._check(path, name, data)
            shape, dtype, chunks = data.shape, data.dtype, data.chunks
        text = dtype.kind == "O"
        backward = self.matlab and not last
        order = tuple(range(len(shape)))
        if self.matlab:  # of the axes in the file: samples first, then MATLAB's
            order = order[::-1] if backward else (*order[:1], *order[:0:-1])
        row = tuple(shape[axis] for axis in order[1:])
        step = _TEXTS if text else rows_of_block(row, dtype)
        if chunks and not text:  # each of which is unpacked once
            deep = chunks[order[0]]
            step = max(deep, step - step % deep) if deep <= 4 * step else step

        packed = math.prod(chunks) * dtype.itemsize if chunks and not text else 0

        def read() -> Iterator[Array]:
            if packed > _LARGE:
                sides = [str(side) for side in shape]
                rows = max(1, min(chunks[order[0]], _CHUNK // max(1, math.prod(row))))
                sides[order[0]] = str(rows)
                log.warning(
                    "%s: %s is stored in chunks of %d MiB, each of which takes that much memory "
                    "once and more; smaller ones are made by h5repack -l %s:CHUNK=%s %s NEW%s",
                    path,
                    name,
                    packed // 2**20,
                    place.strip("/"),
                    "x".join(sides),
                    path.name,
                    path.suffix,
                )
            with self._open(path) as file:
                data = file[place]
                if data.shape != shape or data.dtype != dtype:
                    raise fault(path, "has changed while it was read", "make the shards again")
                source = data.asstr() if text else data
                for start in range(0, shape[order[0]] if shape else 0, step):
                    rows = slice(start, start + step)
                    block = source[(..., rows) if backward else rows]
                    yield block.transpose(order)

        many = (shape[order[0]],) if shape else ()
        return Stored((*many, *row), np.dtype("O") if text else dtype, read)

    def _check(self, path: Path, name: str, data: Any) -> None:
        if not isinstance(data, h5py.Dataset):
            raise fault(path, f"{name} is no data set", "store plain numbers")
        if data.dtype.kind == "O" and h5py.check_string_dtype(data.dtype) is None:
            kind, remedy = "an object array", "store plain numbers, or text"
            if self.matlab:
                kind, remedy = "a cell array", "save numbers, e.g. double(categorical(y))"
            raise fault(path, f"{name} is {kind}", remedy)
        if data.shape is None or data.is_virtual or data.external:
            remedy = "copy the data into it, `file[name] = data[()]`, or name the files themselves"
            raise fault(path, f"{name} is not stored in this file", remedy)
        plist = data.id.get_create_plist()
        for code, *_, filter_name in map(plist.get_filter, range(plist.get_nfilters())):
            if not h5py.h5z.filter_avail(code):
                packer = filter_name.decode(errors="replace") or str(code)
                remedy = f"repack it: h5repack -f GZIP=1 {path.name} NEW.h5"
                raise fault(path, f"{name} is packed by {packer}, which is not there", remedy)
        held = min(data.id.get_storage_size(), path.stat().st_size)
        for shape in (data.shape, *([data.chunks] if data.chunks else [])):
            check_size(path, name, shape, data.dtype, held)

    def _found(self, name: str) -> tuple[Path, str]:
        """The file and the name in it that links lead to."""
        path, place = self.path, name
        for _ in range(_HOPS):
            with self._open(path) as file:
                try:
                    link, at, rest = _first_link(file, place)
                except KeyError:
                    if (path, place) == (self.path, name):
                        raise
                    raise _Dangling(path, place.strip("/")) from None
            if link is None:
                return path, place
            if isinstance(link, h5py.SoftLink):
                place = link.path if link.path.startswith("/") else f"{at}/{link.path}"
            else:
                path = self._beside(path, name, link)
                place = link.path
            place = "/".join(part for part in (place, rest) if part)
        raise fault(self.path, f"{name} is a link that leads on and on", "copy the data")

    def _beside(self, path: Path, name: str, link: h5py.ExternalLink) -> Path:
        """The file of a link, if it lies in the same folder."""
        target = path.parent / link.filename
        if target.resolve().parent != path.resolve().parent:
            role = next((role for role in "xy" if role in name.lower()), "x")
            what = f"{name} is a link to {link.filename}, in another folder"
            raise fault(path, what, f"name that file: --{role} {link.filename}:{link.path}")
        try:
            regular = stat.S_ISREG(target.stat().st_mode)  # to open a pipe would wait for a writer
        except OSError:
            regular = False
        if not regular:
            raise fault(path, f"{name} is a link to {link.filename}, which is no file", "add it")
        return target


def _names(group: h5py.Group) -> list[str]:
    """Of what may be a data set, links among them; groups may hold each other."""
    found: list[str] = []
    waiting, looked = [("", group, 1)], 0
    while waiting and looked < _MOST:
        above, at, deep = waiting.pop(0)
        for name in at:
            looked += 1
            if looked > _MOST or name.startswith("#"):  # MATLAB keeps what others refer to there
                continue
            link = at.get(name, getlink=True)
            is_group = isinstance(link, h5py.HardLink) and at.get(name, getclass=True) is h5py.Group
            if not is_group:
                found.append(f"{above}{name}")
            elif deep < _DEEPEST:
                waiting.append((f"{above}{name}/", at[name], deep + 1))
    return found


def _first_link(file: h5py.File, place: str) -> tuple[Any, str, str]:
    """The first link on the way, the group it is in, and what comes behind it."""
    at: Any = file
    parts = [part for part in place.split("/") if part not in ("", ".")]
    for k, part in enumerate(parts):
        # Whether a name is there would be asked of the link's file, which may be a pipe.
        link = at.get(part, getlink=True) if isinstance(at, h5py.Group) else None
        if link is None:
            raise KeyError(f"no {place}")
        if not isinstance(link, h5py.HardLink):
            return link, "/".join(parts[:k]), "/".join(parts[k + 1 :])
        at = at[part]
    return None, "", ""

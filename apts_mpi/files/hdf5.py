"""HDF5 files opened for reading, whatever state they are in."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from apts_mpi.errors import fault

LIBVER = ("v110", "v110")


# What h5py raises for damage, depending on where it strikes.
DAMAGE = (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError)


@contextmanager
def opened(path: Path, remedy: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; all damage met inside becomes one InputError."""
    try:
        # Asked before opening: to open a pipe would wait for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise fault(path, "is not a file", remedy)
        path.open("rb").close()  # h5py reports a forbidden file as a damaged one
        if not h5py.is_hdf5(path):
            raise fault(path, "is not an HDF5 file", remedy)
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as exc:
        raise fault(path, "is missing", remedy) from exc
    except PermissionError as exc:
        raise fault(path, "may not be read", "change its permissions") from exc
    except DAMAGE as exc:
        detail = " ".join(str(exc).split())[:200] or type(exc).__name__
        raise fault(path, f"is damaged ({detail})", remedy) from exc


def is_inside(file: h5py.File, name: str) -> bool:
    """Whether the file itself has something of that name, and not by a link to elsewhere."""
    at = file
    for part in name.split("/"):
        if not (isinstance(at, h5py.Group) and part in at):
            return False
        if not isinstance(at.get(part, getlink=True), h5py.HardLink):
            return False
        at = at[part]
    return True

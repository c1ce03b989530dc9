"""Where data sets are kept that are made or fetched on first use."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from apts_mpi.errors import InputError

_OWN = "APTS_MPI_CACHE"


def in_cache(name: str) -> Path:
    """The folder of that name in the cache, which may not be there yet.

    The cache is $APTS_MPI_CACHE, or $XDG_CACHE_HOME/apts_mpi, or ~/.cache/apts_mpi; where there is
    no home, or it cannot be written and does not have the folder, one among temporary files, the
    same for all of a user's processes on a host. Raises InputError.
    """
    if own := os.environ.get(_OWN):
        return Path(own) / name
    usual = _usual()
    if usual is not None and ((usual / name).exists() or _can_be_written(usual)):
        return usual / name
    return _temporary() / name


def _usual() -> Path | None:
    """Under the user's home; None without one."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "apts_mpi"
    try:
        return Path.home() / ".cache" / "apts_mpi"
    except RuntimeError:
        return None


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _temporary() -> Path:
    """A folder that nobody else can have put something in."""
    folder = Path()
    try:
        folder = Path(tempfile.gettempdir()) / f"apts_mpi-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        why = f"{folder}: {error.strerror}"
    else:
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            return folder
        why = f"{folder}: is somebody else's"
    raise InputError(f"{why}; name a folder for data sets that are made or fetched by {_OWN}")

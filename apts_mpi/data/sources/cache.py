"""Where data sets are kept that are made or fetched on first use, and how they are fetched.

A file from the network is streamed to one beside, and gets its name once its checksum is right.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import stat
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from apts_mpi.errors import InputError

_OWN = "APTS_MPI_CACHE"
BLOCK = 1 << 20  # bytes held
TIMEOUT = 60  # seconds without a byte


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


@contextmanager
def downloaded(
    url: str, folder: Path, *, limit: int, otherwise: str, md5: str | None = None
) -> Iterator[Path]:
    """The file at `url` under a temporary name in `folder`.

    Args:
        limit: bytes after which no more is taken. otherwise: what to do where it cannot be had.
        md5: that it must have, hex.

    Raises:
        InputError: it cannot be had, is larger or another one.
        OSError: the folder cannot be written.
    """
    name = url.rsplit("/", 1)[-1]
    handle, beside = tempfile.mkstemp(prefix=f".{name}.tmp-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            found = hashlib.md5(usedforsecurity=False)
            for block in _blocks(url, limit, otherwise):
                found.update(block)
                file.write(block)
        if md5 not in (None, found.hexdigest()):
            raise InputError(
                f"{url}: has md5 {found.hexdigest()}, expected {md5}; the server or the line is at "
                "fault, try again later"
            )
        yield Path(beside)
    finally:
        Path(beside).unlink(missing_ok=True)


def _blocks(url: str, limit: int, otherwise: str) -> Iterator[bytes]:
    size = 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            claimed = answer.headers.get("Content-Length") or ""
            expected = int(claimed) if claimed.isdecimal() else None
            with tqdm(
                total=expected,
                desc=f"downloading {url.rsplit('/', 1)[-1]}",
                unit="B",
                unit_scale=True,
                disable=None,
                leave=False,
            ) as bar:
                while block := answer.read(BLOCK):
                    size += len(block)
                    if size > limit:
                        raise InputError(
                            f"{url}: sends more than {limit} bytes; fetch it elsewhere"
                        )
                    bar.update(len(block))
                    yield block
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise InputError(f"{url}: cannot be downloaded ({exc}); {otherwise}") from exc
    if expected is not None and size < expected:
        raise InputError(f"{url}: ended after {size} of {expected} bytes; try again")

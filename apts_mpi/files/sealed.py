"""Files that carry a checksum of themselves, and are whole on the disk once they have their name.

A sealed HDF5 file starts with a line of text in its user block: a kind and the SHA-256 of all that
follows. HDF5 has parts without checksums and crashes on some that are damaged, so that nothing of
a file is looked at before its seal is known to be unbroken.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

SIZE = 512  # bytes of the user block before the HDF5 content
_BLOCK = 1 << 20


def seal_line(kind: str, content: bytes | memoryview) -> bytes:
    """The first ``SIZE`` bytes of a file of that kind, for the content behind them."""
    return _line(kind, hashlib.sha256(content).hexdigest())


def _line(kind: str, digest: str) -> bytes:
    return f"{kind} sha256 {digest}\n".encode().ljust(SIZE, b"\0")


def seal(path: Path, kind: str) -> None:
    """Put the checksum of a finished file into its user block."""
    text = _line(kind, _digest(path))
    with path.open("r+b") as raw:
        raw.write(text)


def unbroken(path: Path, kind: str) -> bool:
    """Whether a file is of that kind and as it was when it was sealed; OSError where unreadable."""
    with path.open("rb") as raw:
        found = raw.read(SIZE)
    return found.startswith(f"{kind} ".encode()) and found == _line(kind, _digest(path))


def _digest(path: Path) -> str:
    """Of all behind the user block, a block at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as raw:
        raw.seek(SIZE)
        while block := raw.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file beside its name, flush it to the disk, and give it the name.

    Raises:
        OSError: it cannot be written; what had the name before is untouched, nothing is left.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Flush a closed file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

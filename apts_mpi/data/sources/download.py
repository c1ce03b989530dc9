"""Files from the network: streamed to a file beside, and looked at once their checksum is right."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from apts_mpi.errors import InputError

BLOCK = 1 << 20  # bytes held
TIMEOUT = 60  # seconds without a byte


@contextmanager
def downloaded(url: str, folder: Path, *, md5: str, limit: int) -> Iterator[Path]:
    """The file at `url`, with that checksum, under a passing name in `folder`.

    Args:
        md5: of the whole file, hex. limit: bytes after which no more is taken.

    Raises:
        InputError: it cannot be had, is larger or another one.
        OSError: the folder cannot be written.
    """
    name = url.rsplit("/", 1)[-1]
    handle, beside = tempfile.mkstemp(prefix=f".{name}.tmp-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            found = hashlib.md5(usedforsecurity=False)
            for block in _blocks(url, limit):
                found.update(block)
                file.write(block)
        if found.hexdigest() != md5:
            raise InputError(
                f"{url}: has md5 {found.hexdigest()}, expected {md5}; the server or the line is at "
                "fault, try again later"
            )
        yield Path(beside)
    finally:
        Path(beside).unlink(missing_ok=True)


def _blocks(url: str, limit: int) -> Iterator[bytes]:
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
        raise InputError(
            f"{url}: cannot be downloaded ({exc}); fetch it elsewhere, unpack it, and name its "
            "folder with --from"
        ) from exc
    if expected is not None and size < expected:
        raise InputError(f"{url}: ended after {size} of {expected} bytes; try again")

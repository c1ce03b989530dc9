"""Standard output and error that never end a program: closed pipes, other encodings, full disks."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class Lenient:
    """A text stream that loses what cannot be written, rather than raise.

    What its encoding does not have is written as an escape.

    Args:
        stream: standard output or error.

    Attributes:
        lost: why something is missing that somebody may look for, as on a full disk; None where
            nothing is, or nobody reads.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write, as far as somebody reads."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Flush, as far as somebody reads."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Point the descriptor nowhere, so that what is still buffered does not fail at the end."""
        if error.errno not in (errno.EPIPE, errno.EBADF):
            self.lost = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def steady() -> None:
    """Make standard output and error lenient, and see that no other file gets their descriptors.

    A file opened where one of them was closed would be written to by whoever writes to them.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, mode)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if not isinstance(stream, Lenient):
            setattr(sys, name, Lenient(stream))


def lost() -> OSError | None:
    """Why standard output is not whole, which is flushed for that; None where it is."""
    sys.stdout.flush()
    return getattr(sys.stdout, "lost", None)


def write_error(text: str) -> None:
    """One write to standard error, so that the lines of several ranks do not mix."""
    with suppress(OSError):  # nobody reads it any more
        os.write(2, text.encode(errors="backslashreplace"))

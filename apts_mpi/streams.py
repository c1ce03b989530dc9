"""Standard output and error that never end a program: closed pipes, other encodings."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class Lenient:
    """A text stream that loses what nobody reads any more, rather than raise.

    What its encoding does not have is written as an escape.

    Args:
        stream: standard output or error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write, as far as somebody reads."""
        try:
            self._stream.write(text)
        except OSError:
            self._drop()
        return len(text)

    def flush(self) -> None:
        """Flush, as far as somebody reads."""
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        """Point the descriptor nowhere, so that what is still buffered does not fail at the end."""
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


def write_error(text: str) -> None:
    """One write to standard error, so that the lines of several ranks do not mix."""
    with suppress(OSError):  # nobody reads it any more
        os.write(2, text.encode(errors="backslashreplace"))

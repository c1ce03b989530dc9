"""Errors that are the user's to mend: one line, an exit status, no traceback."""

from __future__ import annotations


class InputError(Exception):
    """Bad usage or bad input (exit status 2).

    The message is one line that names the file or flag, the offending value and the remedy.
    """


class AgreedError(Exception):
    """An error that every rank raises with the same line, so that one rank tells it for all.

    Attributes:
        status: exit status of the program; 2 where the input was at fault.
    """

    def __init__(self, line: str, status: int = 2) -> None:
        super().__init__(line)
        self.status = status

"""Errors that are the user's to mend: one line, an exit status, no traceback."""

from __future__ import annotations


class InputError(Exception):
    """Bad usage or bad input (exit status 2).

    The message is one line that names the file or flag, the offending value and the remedy.
    """


class AgreedError(InputError):
    """An input error that every rank raises with the same line, so that one rank tells it."""

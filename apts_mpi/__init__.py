"""Data-parallel neural network training by a nonlinearly preconditioned trust-region method.

    from apts_mpi import APTS, StochasticAPTS

``apts_mpi.method`` has the method, ``python -m apts_mpi --help`` describes the program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apts_mpi.version import __version__ as __version__

if TYPE_CHECKING:
    from apts_mpi.comm.communicator import Comm as Comm
    from apts_mpi.comm.replicas import broadcast_module as broadcast_module
    from apts_mpi.comm.watch import Watch as Watch
    from apts_mpi.method.iteration import Iteration as Iteration
    from apts_mpi.method.optimizers import APTS as APTS
    from apts_mpi.method.optimizers import StochasticAPTS as StochasticAPTS
    from apts_mpi.training.trained import load as load

__all__ = ["APTS", "Comm", "Iteration", "StochasticAPTS", "Watch", "broadcast_module", "load"]

_HOME = {
    "APTS": "apts_mpi.method.optimizers",
    "Comm": "apts_mpi.comm.communicator",
    "Iteration": "apts_mpi.method.iteration",
    "StochasticAPTS": "apts_mpi.method.optimizers",
    "Watch": "apts_mpi.comm.watch",
    "broadcast_module": "apts_mpi.comm.replicas",
    "load": "apts_mpi.training.trained",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: importing them starts MPI."""
    if name not in _HOME:
        raise AttributeError(f"module 'apts_mpi' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)

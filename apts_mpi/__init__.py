"""Data-parallel neural network training by a nonlinearly preconditioned trust-region method.

    from apts_mpi import APTS, StochasticAPTS

``apts_mpi.apts`` and ``apts_mpi.stochastic`` are the method, ``python -m apts_mpi --help`` tells of
the program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apts_mpi.apts import APTS as APTS
    from apts_mpi.comm import Comm as Comm
    from apts_mpi.iteration import Iteration as Iteration
    from apts_mpi.replicas import broadcast_module as broadcast_module
    from apts_mpi.stochastic import StochasticAPTS as StochasticAPTS
    from apts_mpi.watch import Watch as Watch

__version__ = "0.1.0"
__all__ = ["APTS", "Comm", "Iteration", "StochasticAPTS", "Watch", "broadcast_module"]

_HOME = {
    "APTS": "apts_mpi.apts",
    "Comm": "apts_mpi.comm",
    "Iteration": "apts_mpi.iteration",
    "StochasticAPTS": "apts_mpi.stochastic",
    "Watch": "apts_mpi.watch",
    "broadcast_module": "apts_mpi.replicas",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: importing them starts MPI."""
    if name not in _HOME:
        raise AttributeError(f"module 'apts_mpi' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)

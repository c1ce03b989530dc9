"""Functions of ``*_programs.py`` on every rank: ``mpirun -n N python programs.py mpi.NAME ...``.

Many of them in one job, as ranks take seconds to start. They assert by themselves.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

from apts_mpi.__main__ import guarded
from apts_mpi.comm.communicator import Comm
from tests.devices import DEVICE

TESTS = Path(__file__).parent
ON_DEVICE = {"mpi", "apts", "baseline", "stochastic", "luck"}  # on a GPU where there is one


def home(module: str) -> str:
    """Where a module of programs lies, by the first part of its name."""
    (path,) = TESTS.rglob(f"{module}_programs.py")
    return ".".join(path.relative_to(TESTS.parent).with_suffix("").parts)


def main() -> None:
    """All that are named, in turn."""
    torch.set_num_threads(1)
    for word in sys.argv[1:]:
        module, name = word.split(".")
        torch.set_default_device(DEVICE if module in ON_DEVICE else "cpu")
        if Comm().rank == 0:
            print(word, flush=True)  # so that a failure says in which
        getattr(importlib.import_module(home(module)), name)()


if __name__ == "__main__":
    sys.exit(guarded(main))

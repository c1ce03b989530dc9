"""Functions of ``*_programs.py`` on every rank: ``mpirun -n N python programs.py mpi.NAME ...``.

Many of them in one job, as ranks take seconds to start. They assert by themselves.
"""

from __future__ import annotations

import importlib
import sys

import torch
from devices import DEVICE

from apts_mpi.__main__ import guarded
from apts_mpi.comm import Comm

ON_DEVICE = {"mpi", "baseline", "stochastic"}  # on a GPU where there is one


def main() -> None:
    """All that are named, in turn."""
    torch.set_num_threads(1)
    for word in sys.argv[1:]:
        module, name = word.split(".")
        torch.set_default_device(DEVICE if module in ON_DEVICE else "cpu")
        if Comm().rank == 0:
            print(word, flush=True)  # so that a failure says in which
        getattr(importlib.import_module(f"{module}_programs"), name)()


if __name__ == "__main__":
    sys.exit(guarded(main))

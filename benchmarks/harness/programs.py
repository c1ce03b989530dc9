"""Tasks that run the program itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apts_mpi.cli.main import main, train_settings
from apts_mpi.training.loop import Training

if TYPE_CHECKING:
    from apts_mpi.comm.communicator import Comm


def program(comm: Comm, folder: Path, lines: Sequence[Sequence[str]]) -> None:
    """Run command lines of the program in turn; "{folder}" in them stands for the piece's."""
    for line in lines:
        main([word.replace("{folder}", str(folder)) for word in line], comm)


def training(arguments: Sequence[str], comm: Comm) -> Training:
    """A run of the program that is about to begin; for tasks that look into it."""
    return Training(train_settings([*arguments]), comm)

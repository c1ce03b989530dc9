"""Tasks that run the program itself, and what is kept of its runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apts_mpi.cli.main import main, train_settings
from apts_mpi.training.loop import Training
from benchmarks.harness.results import Row

if TYPE_CHECKING:
    from apts_mpi.comm.communicator import Comm

PROGRAM = "benchmarks.harness.programs:program"
RUN = "{folder}/run"  # in command lines: the run directory that ``metrics`` and ``summary`` read


def program(comm: Comm, folder: Path, lines: Sequence[Sequence[str]]) -> None:
    """Run command lines of the program in turn; "{folder}" in them stands for the piece's."""
    for line in lines:
        main([word.replace("{folder}", str(folder)) for word in line], comm)


def training(arguments: Sequence[str], comm: Comm) -> Training:
    """A run of the program that is about to begin; for tasks that look into it."""
    return Training(train_settings([*arguments]), comm)


def metrics(folder: Path) -> list[Row]:
    """The rows of a run by outer iteration."""
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def summary(folder: Path, names: Sequence[str]) -> Row:
    """Some figures of a run's summary."""
    found = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    return {name: found[name] for name in names}


def curve(rows: Sequence[Row], name: str) -> list[float]:
    """A column of the metrics, in five digits."""
    return [float(f"{row[name]:.5g}") for row in rows]

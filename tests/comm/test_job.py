"""What the environment says of the processes started, against what MPI finds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apts_mpi.comm.job import ALONE, Misfit, check, launched, speaks
from tests.conftest import Launch

STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "3"}
FOUND = {
    "mpirun": ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}, (1, 4), "Open MPI's"),
    "mpiexec": ({"PMI_RANK": "1", "PMI_SIZE": "2"}, (1, 2), "MPICH's"),
    "mpiexec, local": ({"MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}, (0, 2), "MPICH's"),
    "srun": ({**STEP, "SLURM_STEP_NUM_TASKS": "3"}, (1, 3), "srun"),
    "srun, older": (STEP, (1, 3), "srun"),
    "srun --mpi=pmi2": (
        {**STEP, "SLURM_STEP_NUM_TASKS": "3", "PMI_RANK": "1", "PMI_SIZE": "3"},
        (1, 3),
        "srun",
    ),
    # Whose helpers are started by srun, one a node.
    "mpiexec in a job": (
        {**STEP, "SLURM_STEP_NUM_TASKS": "2", "PMI_RANK": "5", "PMI_SIZE": "8"},
        (5, 8),
        "MPICH's",
    ),
    "mpirun in a job": (
        {**STEP, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"},
        (0, 2),
        "Open MPI's",
    ),
    "torchrun": ({"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}, (0, 2), "torchrun"),
    "deepspeed": ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, (1, 2), "a launcher in"),
    "torchrun by srun": (
        {**STEP, "RANK": "7", "WORLD_SIZE": "12", "TORCHELASTIC_RUN_ID": "x"},
        (7, 12),
        "torchrun",
    ),
    "flux": ({"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2"}, (1, 2), "flux"),
    "jsrun": ({"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "6"}, (1, 6), "jsrun"),
    "a rank alone": ({"PMIX_RANK": "2"}, (2, 3), "a PMIx"),
    "aprun": ({"ALPS_APP_PE": "1"}, (1, 2), "aprun"),
    "horovodrun": ({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "4"}, (1, 4), "horovodrun"),
    "PALS": ({"PALS_RANKID": "0", "PALS_LOCAL_SIZE": "4"}, (0, 4), "MPICH's"),
}
NONE = {
    "nothing": {},
    "batch script": {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"},
    "batch step": {"SLURM_STEP_ID": "batch", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"},
    "batch step, by number": {**STEP, "SLURM_STEP_ID": "4294967291"},
    "interactive step": {**STEP, "SLURM_STEP_ID": "4294967290"},
    "salloc": {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"},
    "srun -n 1": {**STEP, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    "mpirun -n 1 in a step": {
        **STEP,
        "SLURM_STEP_NUM_TASKS": "4",
        "OMPI_COMM_WORLD_RANK": "0",
        "OMPI_COMM_WORLD_SIZE": "1",
    },
    "one worker": {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    "left over": {"WORLD_SIZE": "4", "LOCAL_RANK": "0"},
    "terminal of a step": {
        **STEP,
        "SLURM_PROCID": "0",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_PTY_PORT": "333",
    },
    "a rank left over": {"PMI_RANK": "3"},
    "no number that can be": {"PMI_RANK": "0", "PMI_SIZE": "9" * 5000},
    "no numbers": {"PMI_RANK": "", "RANK": "first", "WORLD_SIZE": "4", "LOCAL_RANK": "0"},
}


@pytest.mark.parametrize("name", FOUND)
def test_a_launcher_is_known_by_its_variables(name: str) -> None:
    environment, numbers, by = FOUND[name]
    found = launched(environment)
    assert found is not None
    assert (found.rank, found.size) == numbers
    assert found.by.startswith(by)
    assert found.remedy


@pytest.mark.parametrize("name", NONE)
def test_one_process_is_no_launch(name: str) -> None:
    assert launched(NONE[name]) is None


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PMI_RANK", "0"), ("PMI_SIZE", "2")):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("two")
def test_fewer_ranks_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check(2, "some MPI")
    check(3, "some MPI")
    with pytest.raises(Misfit, match=r"started 2 processes, but each finds one rank by MPI .some"):
        check(1, "some MPI")
    monkeypatch.setenv(ALONE, "0")
    with pytest.raises(Misfit, match=f"{ALONE}=1"):
        check(1, "some MPI")
    monkeypatch.setenv(ALONE, "1")
    check(1, "some MPI")


@pytest.mark.usefixtures("two")
def test_the_first_process_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apts_mpi.comm.job._PATIENCE", 0.0)
    misfit = Misfit("does not fit")
    assert speaks(0, 1, misfit)
    monkeypatch.setenv("PMI_RANK", "1")
    assert not speaks(0, 1, misfit)
    assert not speaks(0, 1), "--help is told once"
    assert speaks(0, 2), "MPI's own rank counts where it has all"
    assert not speaks(1, 2)
    monkeypatch.setenv(ALONE, "1")
    assert speaks(0, 1), "each is a run of its own"


def test_ranks_that_do_not_find_each_other_end_with_one_line(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("-m", "apts_mpi", "--iterations", "1", "--threads", "1", "--out", "run")
    for name, value in {**STEP, "SLURM_STEP_NUM_TASKS": "3"}.items():
        monkeypatch.setenv(name, value)
    for command in (flags, ("-m", "apts_mpi", "shard", "digits", "--out", "s", "--shards", "1")):
        done = launch(0, *command)
        assert (done.status, done.out, done.err) == (2, "", "")
        monkeypatch.setenv("SLURM_PROCID", "0")
        done = launch(0, *command)
        assert done.status == 2
        (line,) = done.told
        assert line in done.err.strip()
        for word in ("srun started 3", "try srun --mpi=pmix", f"{ALONE}=1"):
            assert word in line
        monkeypatch.setenv("SLURM_PROCID", "1")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(ALONE, "1")
    assert launch(0, *flags).status == 0
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("mpi", ["", "from mpi4py import MPI"])
def test_an_mpi_that_tolerates_faults_is_ended_here_whoever_starts_it(mpi: str) -> None:
    program = f"""import atexit, sys
def told():
    mpi = sys.modules.get("mpi4py.MPI")
    print(mpi and mpi.Is_finalized())
atexit.register(told)
from apts_mpi import Watch
{mpi}
import mpi4py
print(mpi4py.rc.finalize)
"""
    environment = {**os.environ, "OMPI_MCA_mpi_ft_enable": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.stdout.split() == ["False", "True" if mpi else "None"], done.stderr

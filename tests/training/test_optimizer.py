"""The optimizer that the settings name."""

from __future__ import annotations

from pathlib import Path

import pytest

from apts_mpi.comm.communicator import Comm
from apts_mpi.settings.config import TrainConfig
from apts_mpi.training.loop import Training
from apts_mpi.training.optimizer import optimizer


def test_a_classifier_alone_is_told_its_task(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APTS_MPI_CACHE", str(cache))
    config = TrainConfig(
        out=str(tmp_path / "run"), hidden=(8, 8), batch=100, subdomains_per_rank=2, threads=1
    )
    built = Training(config, Comm()).built
    assert built.optimizer.options.classification  # type: ignore[attr-defined]
    for task in ("regression", "language"):
        other = optimizer(built.config, built.network, Comm(), task)
        assert not other.options.classification  # type: ignore[attr-defined]

"""Whether messages go from GPU memory: decided by what libraries say and what a probe finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apts_mpi.comm import gpu_aware
from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.gpu_aware import enable, library_says, query

CUDA = torch.device("cuda")


def yes() -> int:
    """A library that was built for it."""
    return 1


def no() -> int:
    """One that was not."""
    return 0


def test_what_a_library_says() -> None:
    assert library_says(yes, {}) is None
    assert "built without" in (library_says(no, {}) or "")
    assert "does not say" in (library_says(None, {}) or "")
    assert library_says(None, {"MPICH_GPU_SUPPORT_ENABLED": "1"}) is None
    assert library_says(yes, {"MPICH_GPU_SUPPORT_ENABLED": "0"}) == "MPICH_GPU_SUPPORT_ENABLED is 0"
    assert "built without" in (library_says(no, {"MV2_USE_CUDA": "1"}) or "")


def test_the_library_in_use_can_be_asked() -> None:
    ask = query()
    if ask is not None:  # Open MPI and MPICH have it
        assert ask() in (0, 1)


@pytest.mark.parametrize(
    ("found", "told"),
    [(None, "messages go from GPU memory"), ("wrong", r"messages go by the host: rank 0 on ")],
)
def test_the_probe_decides_where_the_library_says_yes(
    found: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    comm, said = Comm(), list[str]()
    monkeypatch.setattr(gpu_aware, "_probe", lambda comm, device: found)
    assert enable(comm, CUDA, said.append, ask=yes, environment={}) == (found is None)
    assert comm.gpu_aware == (found is None)
    assert len(said) == 1
    assert said[0].startswith(told)


def test_nothing_is_probed_where_the_library_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(comm: Comm, device: torch.device) -> str | None:
        raise AssertionError("an address of a GPU was given to a library that takes none")

    monkeypatch.setattr(gpu_aware, "_probe", crash)
    comm, said = Comm(), list[str]()
    assert not enable(comm, CUDA, said.append, ask=no, environment={})
    assert not enable(comm, CUDA, said.append, ask=None, environment={})
    assert not enable(comm, torch.device("cpu"), said.append, ask=yes, environment={})
    assert "the device is cpu" in said[-1]


def test_the_probe_tells_a_sum_that_is_wrong_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    comm, cpu = Comm(), torch.device("cpu")
    assert gpu_aware._probe(comm, cpu) is None
    monkeypatch.setattr(comm, "allreduce", lambda numbers: numbers.add_(1))
    assert "wrong sum" in (gpu_aware._probe(comm, cpu) or "")

    def refuse(numbers: np.ndarray) -> None:
        raise TypeError("no buffer")

    monkeypatch.setattr(comm, "allreduce", refuse)
    assert "fails (no buffer)" in (gpu_aware._probe(comm, cpu) or "")

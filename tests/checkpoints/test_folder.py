"""Folders of checkpoints: which are read."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from apts_mpi.checkpoints import folder
from apts_mpi.checkpoints.folder import COMMON, VERSION, Checkpoints, newest, read
from apts_mpi.checkpoints.state_file import write_state
from apts_mpi.comm.alone import Alone
from apts_mpi.errors import AgreedError, InputError


def test_one_of_another_version_is_refused(tmp_path: Path) -> None:
    head = {"version": VERSION - 1, "run": "r", "iteration": 1, "ranks": 1}
    write_state(tmp_path / COMMON, {**head, "state": {}})
    with pytest.raises(InputError, match="has version 1, not 2; use the version of apts_mpi"):
        read(tmp_path, 0, 1)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder of two checkpoints."""
    comm = Alone()
    checkpoints = Checkpoints(tmp_path, comm, keep=2, run="r")
    for iteration in (1, 2):
        assert checkpoints.save(iteration, {}, {}) is None
    return tmp_path


def test_a_damaged_one_is_passed_over_with_a_warning(two: Path) -> None:
    (two / "00000002" / COMMON).write_bytes(b"")
    warnings = list[str]()
    assert newest(two, Alone(), warnings.append).iteration == 1
    assert len(warnings) == 1


def test_one_that_there_is_no_memory_for_ends_the_search(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(folder, "read_state", fail)
    warnings = list[str]()
    with pytest.raises(AgreedError, match="MemoryError"):
        newest(two, Alone(), warnings.append)
    assert not warnings

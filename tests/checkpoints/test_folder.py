"""Folders of checkpoints: which are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from apts_mpi.checkpoints.folder import COMMON, VERSION, read
from apts_mpi.checkpoints.state_file import write_state
from apts_mpi.errors import InputError


def test_one_of_another_version_is_refused(tmp_path: Path) -> None:
    head = {"version": VERSION - 1, "run": "r", "iteration": 1, "ranks": 1}
    write_state(tmp_path / COMMON, {**head, "state": {}})
    with pytest.raises(InputError, match="has version 1, not 2; use the version of apts_mpi"):
        read(tmp_path, 0, 1)

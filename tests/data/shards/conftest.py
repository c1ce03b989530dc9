"""Fixtures of the tests of shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from apts_mpi.data import write_shards
from tests.data.shards.toys import toy


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_shards(toy(), tmp_path / "toy", shards=4)
    return tmp_path / "toy"

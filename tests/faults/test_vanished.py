"""A host vanishes amid an elastic run, and the others come to the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness.hosts import missing
from tests.faults.vanished import lose


def test_the_others_go_on_without_a_host_that_vanishes(tmp_path: Path) -> None:
    reason = missing()
    if reason:
        pytest.skip(reason)
    assert lose(tmp_path, victim=2, after=10)[0] == ""

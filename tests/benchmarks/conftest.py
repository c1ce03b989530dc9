"""What the tests of several benchmarks need."""

from __future__ import annotations

import pytest

from benchmarks.harness import measure
from tests.benchmarks.support import FakeMpi


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeMpi:
    """Jobs of the harness are not started, but answered."""
    made = FakeMpi()
    monkeypatch.setattr(measure, "mpirun", made)
    return made

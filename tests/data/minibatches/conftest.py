"""Fixtures of the tests of minibatches."""

from __future__ import annotations

import pytest

from apts_mpi.data.minibatches import streaming
from apts_mpi.data.shards import writing
from tests.data.minibatches.streams import KINDS


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few samples, so that there are many."""
    monkeypatch.setattr(writing, "CHUNK", 100)
    monkeypatch.setattr(streaming, "CHUNK", 100)

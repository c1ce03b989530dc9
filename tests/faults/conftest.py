"""Runs whose files are damaged start quickly in tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import run_files


@pytest.fixture(scope="session", autouse=True)
def quick_runs(python: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_files, "PYTHON", python)
        yield

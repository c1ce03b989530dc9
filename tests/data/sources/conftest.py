"""Fixtures of the tests of sources."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[".npz", ".h5"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)

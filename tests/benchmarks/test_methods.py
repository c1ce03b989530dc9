"""Results know the version of the method that made them; committed ones are of the present one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apts_mpi.version import METHODS
from benchmarks.harness.jobs import RESULTS
from benchmarks.harness.methods import note, outdated, solver, version
from benchmarks.harness.results import contents

Row = dict[str, Any]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"optimizer": "apts", "arguments": []}, "spectral"),
        ({"optimizer": "apts", "arguments": ["--compress", "bf16"]}, "spectral"),
        ({"optimizer": "apts", "arguments": ["--local-solver", "scaled"]}, "scaled"),
        ({"optimizer": "muon", "arguments": ["--schedule", "cosine"]}, None),
        ({"benchmark": "strong", "method": "apts-sr1"}, "sr1"),
        ({"benchmark": "network", "method": "apts-auto"}, "spectral"),
        ({"benchmark": "network", "method": "ddp-adam"}, None),
        ({"benchmark": "streaming"}, None),
        ({"local_solver": "first-order", "ranks": 2}, "first-order"),
        ({"subdomains": 16, "ranks": 1}, "spectral"),
        ({"problem": "quadratic", "method": "L-SR1"}, "sr1"),
    ],
)
def test_settings_name_the_solver(settings: Row, wanted: str | None) -> None:
    assert solver(settings) == wanted


def test_a_row_of_another_version_is_outdated_and_noted() -> None:
    settings = {"optimizer": "apts", "arguments": []}
    now = {"settings": settings, "method": version(settings)}
    old = {"settings": settings, "method": "spectral 0", "date": "2026-01-02"}
    other = {"settings": {"optimizer": "sgd"}}
    assert [outdated(row) for row in (now, old, {"settings": settings}, other)] == [0, 1, 1, 0]
    assert note([now, other]) is None
    found = note([now, old, other])
    assert found is not None
    assert "1 runs with the local solver the default at the time (2026-01-02)" in found


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl*")), ids=lambda path: path.name)
def test_what_is_committed_is_of_this_version(path: Path) -> None:
    """A change of the method makes results wrong until they are measured again."""
    for line in contents(path).decode("utf-8").splitlines():
        row = json.loads(line)
        assert not outdated(row), f"measure again: {row['settings']}"
        assert row.get("method") is None or row["method"].split()[0] in METHODS


def test_what_is_committed_is_small() -> None:
    size = sum(path.stat().st_size for path in RESULTS.iterdir())
    assert size <= 5e6, (
        "gzip -9n the longest files of benchmarks/results: they are read all the same"
    )

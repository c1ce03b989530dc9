"""Ranks die, and the others go on: one real job for each way that it can end."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import MPIRUN
from tests.faults.elastic_runs import Elastic, ElasticFaults, table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, python: str) -> ElasticFaults:
    if MPIRUN is None or sys.platform != "linux":
        pytest.skip("ranks are killed in jobs of mpirun on Linux")
    return ElasticFaults(tmp_path_factory.mktemp("elastic"), seed=0, python=python)


def injected(
    runs: ElasticFaults, name: int, fewest: int, *faults: tuple[str, str, int, int]
) -> Elastic:
    """The run in which these happen: action, place, rank and number of the call."""
    planted = [
        {"action": action, "place": place, "rank": rank, "number": number}
        for action, place, rank, number in faults
    ]
    runs.choose = lambda number: {  # type: ignore[method-assign]
        "faults": planted,
        "variant": ["--local-steps", "4"],
        "fewest": fewest,
    }
    return runs.run(name)


def test_survivors_go_on_without_rank_zero_and_one_that_dies_as_they_recover(
    runs: ElasticFaults,
) -> None:
    found = injected(runs, 0, 1, ("kill", "message", 0, 60), ("kill", "handing over", 2, 1))
    assert (found.why, found.status, found.left) == ("", 0, 2)


def test_below_the_fewest_ranks_a_checkpoint_is_written_and_the_status_is_three(
    runs: ElasticFaults,
) -> None:
    found = injected(runs, 1, 4, ("no memory", "gradient", 1, 30))
    assert (found.why, found.status) == ("", 3)


def test_the_table_has_a_line_for_each_kind() -> None:
    fault = {"action": "kill", "place": "message", "rank": 1, "number": 2}
    one = Elastic(0, [fault], [], 1, "went on", 0, 3, 2.0, 0.5)
    lines = table([one]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| one rank", "| kill", "| all"]

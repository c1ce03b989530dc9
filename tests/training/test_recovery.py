"""Ranks die, and the others go on: one real job for each way that it can end."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from apts_mpi.comm import job
from apts_mpi.comm.elastic import Guarded
from apts_mpi.comm.job import MPI
from apts_mpi.errors import AgreedError
from apts_mpi.training.console import Console
from apts_mpi.training.recovery import ElasticRun
from apts_mpi.training.signals import StopSignals
from tests.conftest import MPIRUN, Launch
from tests.faults.elastic_runs import Elastic, ElasticFaults, table

# Every iteration is evaluated, so that a death is noticed before the next one's local steps.
EXACT = (
    *("--hidden", "8", "--threads", "1", "--batch", "60", "--local-steps", "4", "--epochs", "1e6"),
    *("--evaluate-every", "1e-6", "--device", "cpu", "--checkpoint-every", "4"),
)


def rows(run: Path) -> list[dict[str, Any]]:
    """The metrics, but for times and what is sent, which a recovery adds to."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    aside = ("seconds", "bytes")
    return [
        {name: v for name, v in json.loads(line).items() if not name.startswith(aside)}
        for line in lines
    ]


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
    return runs.run([name])[0]


def test_survivors_go_on_without_rank_zero_one_that_dies_as_they_recover_and_one_at_the_end(
    runs: ElasticFaults,
) -> None:
    in_recovery, after_it = ("kill", "handing over", 2, 1), ("kill", "agreement", 1, 3)
    found = injected(runs, 0, 1, ("kill", "message", 0, 60), in_recovery, after_it)
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


def test_survivors_go_the_very_way_of_a_run_resumed_on_as_many_ranks(
    runs: ElasticFaults, launch: Launch, tmp_path: Path
) -> None:
    flags = (*EXACT, "--data", runs.data)
    words = ("-m", "apts_mpi", *flags, "--iterations", "4", "--out", "whole")
    assert launch(3, *words).status == 0
    resumed = launch(2, "-m", "apts_mpi", "--iterations", "8", "--resume", "whole")
    assert resumed.status == 0
    fault = {"action": "kill", "place": "after an iteration", "rank": 2, "number": 4}
    done = runs.job(
        3,
        (*flags, "--iterations", "8", "--elastic", "--log", "csv", "--out", tmp_path / "left"),
        fault,
    )
    assert done == 0
    expected, found = rows(tmp_path / "whole"), rows(tmp_path / "left")
    assert [row["iteration"] for row in found] == list(range(1, 9))
    logged = (tmp_path / "left/metrics.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in logged] == [str(row["iteration"]) for row in found]
    assert found[4:] == expected[4:]
    # The fourth was evaluated on fewer parts, whose sums may round in another way.
    same = [(row["loss"], row["radius"]) for row in found[:4]]
    assert same == [(row["loss"], row["radius"]) for row in expected[:4]]


def test_an_error_about_flags_ends_a_rank_without_mpis_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may wait for one that has seen a death, as that one does for it to agree."""
    ended = list[int]()
    monkeypatch.setattr(job, "_left", [])
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(Guarded, "world", lambda: Guarded(MPI.COMM_SELF.Dup()))
    with StopSignals() as signals, pytest.raises(AgreedError, match="--trace"):
        ElasticRun({"elastic": True, "trace": "trace"}, None, signals, Console).run()
    job.leave(2)
    assert ended == [2]

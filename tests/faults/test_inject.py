"""Faults in running jobs, in a short form, and that the judge can tell what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MPIRUN
from tests.faults import jobs
from tests.faults.faulty_runs import ACTIONS, RANKS, Faults, Outcome
from tests.faults.inject import table

# A rank that is gone amid a file, one that stands still, samples that are bad; signals and damaged
# checkpoints are in tests/training/test_resume.py.
SHORT = ("kill", "stop", "NaN")


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory, python: str) -> Faults:
    if MPIRUN is None or sys.platform != "linux":
        pytest.skip("faults are planted in jobs of mpirun on Linux")
    return Faults(tmp_path_factory.mktemp("faults"), seed=0, python=python)


def test_runs_end_or_go_on_correctly_whatever_happens(
    faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = faults.choose

    def late(number: int) -> dict[str, Any]:
        """Not before there is a checkpoint to lose."""
        fault = choose(number)
        if fault["action"] == "kill":
            fault["place"] = "half a file"
            most = faults.counts[fault["rank"]][fault["place"]]
            fault["number"] = max(fault["number"], most // 2 + 1)
        return fault

    monkeypatch.setattr(faults, "choose", late)
    results = faults.run(map(ACTIONS.index, SHORT))
    assert [each.action for each in results] == list(SHORT)
    wrong = [each for each in results if each.outcome == "wrong"]
    assert not wrong, wrong
    assert [each.outcome for each in results[:2]] == ["ended", "ended"]
    assert f"| all | {len(SHORT)} |" in table(results)


def test_faults_are_the_same_again_and_everywhere(faults: Faults) -> None:
    numbers = range(20 * len(ACTIONS))
    chosen = [faults.choose(number) for number in numbers]
    assert chosen == [faults.choose(number) for number in numbers]
    kills = [each for each in chosen if each["action"] == "kill"]
    assert len(kills) == 20
    assert len({each["place"] for each in kills}) >= 6
    assert {each["rank"] for each in kills} == set(range(RANKS))


# ---- the judge ---------------------------------------------------------------------------------


FAULT = {"action": "stop", "place": "message", "rank": 1, "number": 3}


@pytest.mark.parametrize(
    ("action", "status", "text", "why"),
    [
        ("stop", 1, "apts_mpi: not arrived: rank 1 on h (process 3)", ""),
        ("stop", 1, "apts_mpi: not arrived: rank 2 on h (process 3)", "is not told"),
        ("exception", 1, "[rank 1 on h] ZeroDivisionError: planted", ""),
        ("exception", 1, "[rank 1 on h] KeyError", "is not told"),
        ("kill", 137, "  \n", "nothing is told"),
        ("SIGTERM", 3, "stopped by SIGTERM, checkpoint here", ""),
        ("SIGTERM", 3, "stopped by SIGTERM", "status 3 without a checkpoint"),
        ("kill", 3, "checkpoint", "status 3 without a signal"),
    ],
)
def test_what_is_told_is_judged(
    faults: Faults, action: str, status: int, text: str, why: str
) -> None:
    found = faults._ended({**FAULT, "action": action}, status, text)
    assert why in found
    assert bool(found) == bool(why)


@pytest.fixture
def outcome() -> Outcome:
    return Outcome(0, "kill", "message", 1, 3, "ended", 137, 2.0)


@pytest.mark.parametrize(
    ("change", "end", "why"),
    [
        ("", "done", ""),
        ("", "no checkpoint", "it does not go on: no checkpoint"),
        ("metrics", "done", "other metrics"),
        ("checkpoint", "done", "is damaged"),
    ],
)
def test_what_a_run_leaves_is_judged(
    faults: Faults, outcome: Outcome, tmp_path: Path, change: str, end: str, why: str
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(faults.reference, run)
    if change == "metrics":
        rows = (run / "metrics.jsonl").read_text().splitlines()
        row = json.loads(rows[-1])
        rows[-1] = json.dumps({**row, "loss": row["loss"] + 1e-16})
        (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    if change == "checkpoint":
        path = next((run / "checkpoint").glob("*/rank-00002.h5"))
        path.write_bytes(path.read_bytes()[:-1])
    judged = faults._after(run, outcome, end)
    assert (judged.outcome == "wrong") == bool(why)
    assert why in judged.why


@pytest.fixture
def orphan() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, env={**os.environ, "FAULT_MARK": "left-behind"}) as process:
        yield process
        process.kill()


def test_processes_that_are_left_are_found_and_ended(
    orphan: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "GONE", 0.3)
    time.sleep(0.1)
    assert jobs.left_over("left-behin") == []
    assert jobs.left_over("left-behind") == [orphan.pid]
    assert orphan.wait(timeout=60) == -9

"""The comparison runs what is missing, job by job, survives what fails, and writes its report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")

from benchmarks.__main__ import main
from tests.benchmarks.support import FakeMpi, cells_of, needs_mpirun, rows_of
from tests.benchmarks.test_compare import SMALL, plan_of

EVERYTHING = 2 * 3 + (6 + 2 * 2) + 3  # apts, adam with its finalists, local-sgd


def called(tmp_path: Path, *options: str) -> int:
    common = ["compare", "--config", str(plan_of(tmp_path)), "--out", str(tmp_path / "out")]
    return main([*common, *options])


def test_runs_all_and_resumes(tmp_path: Path, fake: FakeMpi) -> None:
    assert called(tmp_path, "--jobs", "3") == 0
    rows = rows_of(tmp_path / "out" / "compare.jsonl")
    assert len(rows) == len(fake.ran) == EVERYTHING
    diverged = [row for row in rows if row["test_accuracy"] is None]
    assert [row["settings"]["lr"] for row in diverged] == [9.0, 9.0]
    assert "not finite" in diverged[0]["diverged"]
    whole = next(row for row in rows if row["settings"]["optimizer"] == "apts")
    assert whole["curves"] == {
        "epoch": [1.5, 3.5],
        "test_accuracy": [0.1, 0.7],
        "test_loss": [2.3, 0.5],
        "messages": [2, 6],
    }
    assert str(tmp_path) not in json.dumps(rows)
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "19 runs, of which 2 diverged." in text
    assert "Not complete" not in text
    fake.ran.clear()
    assert called(tmp_path) == 0  # nothing runs twice
    assert fake.ran == []
    assert called(tmp_path, "--fresh", "--methods", "apts", "--seeds", "0,2") == 0
    assert len(fake.ran) == 4
    assert len(rows_of(tmp_path / "out" / "compare.jsonl")) == EVERYTHING
    fake.ran.clear()
    (tmp_path / "out" / "compare.md").unlink()
    assert called(tmp_path, "--report-only", "--fresh") == 0
    assert fake.ran == []
    assert (tmp_path / "out" / "compare.md").read_text(encoding="utf-8") == text


def test_selection(tmp_path: Path, fake: FakeMpi) -> None:
    assert called(tmp_path, "--methods", "apts,local-sgd", "--ranks", "2", "--seeds", "1") == 0
    rows = rows_of(tmp_path / "out" / "compare.jsonl")
    kinds = [(r["settings"]["optimizer"], r["settings"]["ranks"]) for r in rows]
    assert kinds == [("apts", 2), ("local-sgd", 2)]
    assert "**Not complete:**" in (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")


def test_a_job_that_dies_costs_one_run(tmp_path: Path, fake: FakeMpi) -> None:
    fake.dies_at = "--seed 1 --device cpu --threads 1 --evaluate-every 1 --data"
    assert called(tmp_path, "--methods", "apts") == 1
    rows = rows_of(tmp_path / "out" / "compare.jsonl")
    assert [row["settings"]["seed"] for row in rows] == [0, 2, 0, 2]
    fake.dies_at = ""
    fake.ran.clear()
    assert called(tmp_path, "--methods", "apts") == 0
    assert len(fake.ran) == 2


def test_a_run_that_fails_is_not_written_down(
    tmp_path: Path, fake: FakeMpi, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.fails_at = "--lr 0.001 --batch 400"
    assert called(tmp_path, "--methods", "adam") == 1
    assert "failed: --lr: unknown" in capsys.readouterr().out
    assert len(rows_of(tmp_path / "out" / "compare.jsonl")) == 5  # and there are no finalists
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "then those of the finalists" in text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--sets", "nope"], "--sets nope: is none of small"),
        (["--methods", "lion"], "--methods lion"),
        (["--jobs", "0"], "--jobs"),
        (["--config", "/nowhere.toml"], "/nowhere.toml: cannot be read"),
    ],
)
def test_bad_usage(
    tmp_path: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(tmp_path, *options) == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.splitlines()) == 1


def test_data_are_looked_for_before_anything_runs(
    tmp_path: Path, fake: FakeMpi, capsys: pytest.CaptureFixture[str]
) -> None:
    second = SMALL[SMALL.index("[[sets]]") :].replace("small", "late").replace("digits", "mnist")
    plan = plan_of(tmp_path, SMALL + second)
    options = ["--out", str(tmp_path / "out"), "--mnist", str(tmp_path / "nowhere")]
    assert main(["compare", "--config", str(plan), *options]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert fake.ran == []


def test_report(tmp_path: Path, fake: FakeMpi) -> None:
    assert called(tmp_path) == 0
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    lines = {tuple(line[:2]): line for line in cells_of(text) if len(line) > 9}
    adam = lines["Adam", "any"]
    assert adam[2:4] == ["90.00 [90.00, 90.00]", "3"]
    assert adam[7:12] == ["0.01", "400", "-", "diverged", "6"]
    assert lines["Local SGD", "2"][7:12] == ["0.1", "100", "5", "70.00", "1"]
    assert lines["APTS", "2"][2:6] == ["70.00 [70.00, 70.00]", "3", "3.5", "6"]
    assert "compare_small.png" in text
    assert (tmp_path / "out" / "compare_small.png").stat().st_size > 1000


@needs_mpirun
@pytest.mark.usefixtures("all_cores")
def test_end_to_end(tmp_path: Path) -> None:
    text = SMALL.replace("[0.1]", "[0.1, 1e30]").replace("epochs = 4", "epochs = 14")
    plan, out = plan_of(tmp_path, text), tmp_path / "out"
    options = ["--methods", "apts,local-sgd", "--ranks", "2", "--seeds", "0", "--timeout", "100"]
    assert main(["compare", "--config", str(plan), "--out", str(out), *options]) == 0
    apts, good, bad = rows_of(out / "compare.jsonl")
    assert bad["test_accuracy"] is None
    assert "not finite" in bad["diverged"]
    assert good["command"].endswith("--lr 0.1 --batch 50 --local-steps 5")
    passes = good["epochs"] * math.ceil(1437 / 100) / 5  # a message is five steps
    assert good["vector_allreduces"] == pytest.approx(passes, abs=1)
    assert good["curves"]["messages"][-1] == good["vector_allreduces"]
    assert apts["epochs"] >= 14
    assert apts["vector_allreduces"] < good["vector_allreduces"]
    assert (out / "compare.md").exists()

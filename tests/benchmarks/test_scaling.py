"""``strong`` and ``weak``: the plan, the same work for every N, the rows, the figures from them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from apts_mpi.comm.clock import PHASES
from apts_mpi.errors import InputError
from benchmarks.__main__ import main
from benchmarks.harness import data
from benchmarks.harness.data import cut, like_mnist
from benchmarks.harness.jobs import ROOT, launcher, words
from benchmarks.harness.measure import Outcome
from benchmarks.harness.options import shared_folder
from benchmarks.harness.phase_runs import Point, points, runs
from benchmarks.harness.results import Results, Row
from benchmarks.scaling.command import clock_rows, how
from benchmarks.scaling.findings import overhead
from benchmarks.scaling.plan import (
    SPLIT_METHODS,
    Method,
    Plan,
    jobs,
    ranks_of,
    read_plan,
    run_of,
)
from benchmarks.scaling.series import Series, networks

TINY = """
data = "digits"
networks = ["16"]
ranks = [1, 2]
repetitions = 1
warm_up = 1
samples = 2000

[[methods]]
name = "apts"
arguments = []
batches = [50]
local_steps = 8
split = "steps"

[[methods]]
name = "adam"
arguments = ["--optimizer", "adam"]
batches = [100]
split = "batch"
"""


def plan(**changes: object) -> Plan:
    methods = (
        Method(name="steps", arguments=(), batches=(250,), local_steps=40, split="steps"),
        Method(name="batch", arguments=(), batches=(500,), split="batch"),
    )
    values: Row = {
        **{"data": "digits", "networks": ("32",), "ranks": (1, 2), "repetitions": 2},
        **{"warm_up": 1, "samples": 10_000, "methods": methods},
    }
    return Plan(**{**values, **changes})


def argument(arguments: Sequence[str], flag: str) -> int:
    return int(arguments[list(arguments).index(flag) + 1])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_strong_scaling_is_the_same_work_for_every_number_of_ranks(ranks: int) -> None:
    base: Row = {"hidden": "32", "ranks": ranks, "repetition": 0}
    steps, batch = plan().methods
    one = run_of(plan(), steps, {**base, "batch": 250}).arguments
    assert ranks * argument(one, "--local-steps") * argument(one, "--batch") == 10_000
    two = run_of(plan(), batch, {**base, "batch": 500}).arguments
    assert ranks * argument(two, "--batch") == 500
    assert argument(two, "--iterations") == 1 + 20


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_weak_scaling_is_the_same_work_for_every_rank(ranks: int) -> None:
    method = Method(name="m", arguments=(), batches=(250,), local_steps=20)
    run = run_of(plan(), method, {"hidden": "32", "ranks": ranks, "batch": 250, "repetition": 0})
    assert argument(run.arguments, "--local-steps") == 20
    assert argument(run.arguments, "--batch") == run.settings["batch"] == 250
    assert argument(run.arguments, "--iterations") == 1 + 8  # the fewest, whatever N


def test_every_run_comes_once_and_in_the_same_random_order_each_time() -> None:
    first, again = ([r for batch in jobs(plan(), "weak") for r in batch] for _ in range(2))
    assert first == again
    keys = [json.dumps(run.settings, sort_keys=True) for run in first]
    assert len(set(keys)) == len(keys) == 2 * 2 * 2
    for batch in jobs(plan(), "strong"):
        assert len({run.settings["ranks"] for run in batch}) == 1


def test_the_committed_plans_are_read() -> None:
    for kind in ("strong", "weak"):
        read = read_plan(ROOT / "benchmarks" / f"{kind}.toml", strong=kind == "strong")
        assert {m.name for m in read.methods} >= {"apts", "adam", "local-sgd", "diloco"}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"digits"', '"cifar"', "neither mnist nor digits"),
        ("ranks = [1, 2]", "ranks = []", "networks or ranks are missing"),
        ("ranks = [1, 2]", 'ranks = ["1"]', "must be of type int"),
        ('split = "steps"', 'split = "half"', "'steps' or 'batch'"),
        ("batches = [50]", "batches = [0]", "batches must be positive"),
        ("samples = 2000", "samples = 0", "must be positive"),
        ('name = "adam"', 'name = "apts"', "names of their own"),
        ("local_steps = 8", "steps = 8", "'steps' is not known"),
    ],
)
def test_a_plan_that_is_wrong_is_refused_in_one_line(
    tmp_path: Path, old: str, new: str, line: str
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(TINY.replace(old, new, 1))
    with pytest.raises(InputError, match=line) as caught:
        read_plan(path, strong=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_in_an_allocation_there_are_as_many_ranks_as_it_has_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert ranks_of(plan(), None) == (1, 2)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "6")
    assert ranks_of(plan(), None) == (1, 2, 4, 6)
    assert ranks_of(plan(), (3,)) == (3,)
    monkeypatch.setenv("SLURM_NTASKS", "many")
    with pytest.raises(InputError, match="SLURM_NTASKS=many"):
        ranks_of(plan(), None)


def test_another_launcher_gets_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert words("env A=1 echo -n {ranks}", 4) == ["env", "A=1", "echo", "-n", "4"]
    with pytest.raises(InputError, match=r"has no \{ranks\}"):
        words("srun -n 4", 4)
    with pytest.raises(InputError, match="not on PATH"):
        words("no-such-launcher -n {ranks}", 4)


def rows(ranks: int, each: Row, *, work: float, repetition: int = 0, **more: object) -> list[Row]:
    """Rows of one run of three iterations; each: seconds of a phase, by phase and rank."""
    settings = {"benchmark": "strong", "method": "m", "data": "d", "hidden": "h", "batch": 1}
    return [
        {
            "settings": {
                **settings,
                **{"ranks": ranks, "repetition": repetition, "rank": rank, "phase": phase},
            },
            "seconds": [each.get(phase, [0.0] * ranks)[rank]] * 3,
            **{"evaluations": 3 * work, "cpu_seconds": 1.5, "oversubscribed": False},
            **{"samples": 100, "local_steps": None, "run": f"{ranks}-{repetition}"},
            **{"bytes": 10, "messages": 3, "parameters": 7, **more},
        }
        for rank in range(ranks)
        for phase in PHASES
    ]


def only(found: list[Row]) -> tuple[Series, dict[int, Point]]:
    """The one series that rows make, and its points by ranks."""
    (network,) = networks(points(runs(found)[0]), "strong")
    (series,) = network.series
    return series, {point.ranks: point for point in series.points}


def test_efficiency_is_time_on_one_rank_over_n_times_that_on_n_for_the_same_work() -> None:
    one = rows(1, {"gradient": [8.0], "evaluation": [100.0]}, work=1000.0)
    two = rows(2, {"gradient": [4.0, 3.0], "wait": [0.0, 1.0], "allreduce": [1.0] * 2}, work=1000.0)
    series, found = only(one + two)
    efficiency = series.efficiency(found[2])
    assert efficiency is not None
    assert efficiency.value == pytest.approx(8.0 / (2 * 5.0))
    assert found[2].per_epoch.value == pytest.approx(100 * 5.0 / 1000.0)
    assert found[2].share("allreduce") == pytest.approx(0.2)
    assert found[2].share("wait") == pytest.approx(0.1)
    # Evaluation belongs to no outer iteration.
    assert found[1].per_iteration.value == 8.0


def test_a_late_rank_that_makes_the_other_wait_is_counted_once() -> None:
    found = rows(2, {}, work=1.0)
    late = {0: [3.0, 1.0, 1.0], 1: [1.0, 3.0, 1.0]}  # rank 1 waits in the second for the first's
    for row in found:
        if row["settings"]["phase"] == "gradient":
            row["seconds"] = late[row["settings"]["rank"]]
    (run,), _ = runs(found)
    assert run.seconds == 5.0
    assert run.iterations.tolist() == [3.0, 3.0, 1.0]


@pytest.mark.parametrize("change", [{"oversubscribed": True}, {"evaluations": 3 * 16.0}])
def test_no_efficiency_is_drawn_from_shared_cores_or_other_work(change: Row) -> None:
    one = rows(1, {"gradient": [8.0]}, work=10.0)
    series, found = only(one + rows(2, {"gradient": [4.0, 4.0]}, work=10.0, **change))
    assert series.efficiency(found[2]) is None


def test_of_a_run_that_broke_off_nothing_is_told() -> None:
    found, left_out = runs(rows(2, {"gradient": [4.0, 4.0]}, work=10.0)[:-1])
    assert (found, left_out) == ([], 1)


def test_what_the_clock_costs_is_told_by_neighbours() -> None:
    cost = overhead([1.01, 2.02, 9.0, 3.03, 4.04], [1.0, 2.0, 3.0, 3.0, 4.0])
    assert cost.value == pytest.approx(1.0)


def test_turns_with_the_clock_on_are_not_taken_for_those_without() -> None:
    # Iterations 3 to 9 count: on in odd ones; the check of the replicas and the end are left out.
    values = {"phases": {}, "walls": [5.0, 1.0, None, 1.0, 5.0, 2.0, 99.0]}
    (row,), _ = clock_rows(2, Outcome([values], Path(), 1.0))
    assert (row["on"], row["off"]) == ([5.0, 5.0], [1.0, 2.0])


def test_another_plan_or_launcher_is_another_run() -> None:
    base: Row = {"hidden": "32", "ranks": 1, "repetition": 0, "batch": 250}
    method = plan().methods[0]
    keys = [
        run_of(plan(), method, base).settings["plan"],
        run_of(plan(samples=500_000), method, base).settings["plan"],
        run_of(plan(warm_up=9), method, base).settings["plan"],
        run_of(plan(), dataclasses.replace(method, local_steps=20), base).settings["plan"],
        run_of(plan(), method, base, how("srun -n {ranks}")).settings["plan"],
    ]
    assert len(set(keys)) == len(keys)
    again = run_of(plan(), method, {**base, "repetition": 1})
    assert again.settings["plan"] == keys[0]


def test_on_several_nodes_the_shards_are_where_all_see_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    assert shared_folder(tmp_path) is None
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert shared_folder(tmp_path) == tmp_path / "work"


def test_random_samples_stand_in_under_their_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "find", no_mnist)
    monkeypatch.setattr(data, "write_shards", lambda *given, **named: None)
    name, _ = cut("mnist", tmp_path, None)
    assert name == "mnist-shaped"
    assert "timing random samples" in capsys.readouterr().out
    with pytest.raises(InputError, match="not here"):
        cut("mnist", tmp_path, tmp_path)


def no_mnist(source: str, given: Path | None) -> Path:
    raise InputError("MNIST is not here")


def test_random_samples_have_the_shape_of_mnist() -> None:
    source = like_mnist()
    assert (source.x_train.shape, source.x_test.shape) == ((60_000, 28, 28), (10_000, 28, 28))
    assert len(source.classes) == 10


@pytest.mark.skipif(launcher() is None, reason="no mpirun")
@pytest.mark.usefixtures("all_cores")
def test_strong_runs_writes_all_rows_and_does_not_run_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in SPLIT_METHODS:
        monkeypatch.setitem(SPLIT_METHODS, method, 11)
    (tmp_path / "plan.toml").write_text(TINY)
    arguments = ["strong", "--config", str(tmp_path / "plan.toml"), "--out", str(tmp_path)]
    assert main([*arguments, "--timeout", "60"]) == 0
    told = capsys.readouterr().out
    assert told.count("ms per outer iteration") == 4
    results = Results(tmp_path / "strong.jsonl")
    timed = [row for row in results.rows() if row["settings"]["benchmark"] == "strong"]
    assert len(timed) == 2 * (1 + 2) * len(PHASES)
    for row in timed:
        assert row["versions"]["mpi"]
        assert row["binding"]
        assert len(row["seconds"]) >= 8
        assert row["bytes"] > 0
        assert row["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
        assert row["dataset"] == "digits"
    gradient = [row for row in timed if row["settings"]["phase"] == "gradient"]
    assert all(sum(row["seconds"]) > 0 for row in gradient)
    split = [row for row in results.rows() if row["settings"]["benchmark"] == "split"]
    assert len(split) == 2 * 2
    assert all(len(row["on"]) == len(row["off"]) == 5 for row in split)
    text = (tmp_path / "strong.md").read_text()
    assert "APTS" in text
    assert "Measuring the phases costs" in text
    capsys.readouterr()
    assert main(arguments) == 0
    assert "8 runs, 8 of them done before" in capsys.readouterr().out


@pytest.mark.usefixtures("all_cores")
def test_a_job_that_fails_is_told_and_the_status_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.toml").write_text(TINY)
    arguments = ["strong", "--config", str(tmp_path / "plan.toml"), "--out", str(tmp_path)]
    assert main([*arguments, "--launch", "false {ranks}"]) == 1
    assert "status 1" in capsys.readouterr().out

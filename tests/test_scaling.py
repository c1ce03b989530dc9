"""``strong`` and ``weak``: the plan, the same work for every N, the rows, the figures from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from apts_mpi.clock import PHASES
from apts_mpi.errors import InputError
from benchmarks.__main__ import main
from benchmarks.launch import ROOT, Results, Row, launcher, words
from benchmarks.scaling.command import is_done, like_mnist
from benchmarks.scaling.plan import Method, Plan, jobs, ranks_of, read_plan, run_of
from benchmarks.scaling.report import cases, efficiency, overhead

TINY = """
data = "digits"
networks = ["16"]
ranks = [1, 2]
repetitions = 1
warm_up = 1
samples = 2000

[[methods]]
name = "apts-scaled"
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
        assert {m.name for m in read.methods} >= {"apts-scaled", "adam", "local-sgd", "diloco"}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"digits"', '"cifar"', "neither mnist nor digits"),
        ("ranks = [1, 2]", "ranks = []", "networks or ranks are missing"),
        ("ranks = [1, 2]", 'ranks = ["1"]', "must be of type int"),
        ('split = "steps"', 'split = "half"', "'steps' or 'batch'"),
        ("batches = [50]", "batches = [0]", "batches must be positive"),
        ("samples = 2000", "samples = 0", "must be positive"),
        ('name = "adam"', 'name = "apts-scaled"', "names of their own"),
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
            **{"samples": 100, "local_steps": None, **more},
        }
        for rank in range(ranks)
        for phase in PHASES
    ]


def test_efficiency_is_time_on_one_rank_over_n_times_that_on_n_for_the_same_work() -> None:
    one = rows(1, {"gradient": [8.0], "evaluation": [100.0]}, work=1000.0)
    two = rows(2, {"gradient": [4.0, 3.0], "wait": [0.0, 1.0], "allreduce": [1.0] * 2}, work=1000.0)
    found = cases(one + two)
    assert [case.ranks for case in found] == [1, 2]
    assert efficiency(found[1], found, "strong") == pytest.approx(8.0 / (2 * 5.0))
    assert found[1].per_work() == pytest.approx(5.0 / 1000.0)
    assert found[1].share("allreduce") == pytest.approx(0.2)
    assert found[1].share("wait") == pytest.approx(0.1)
    # Evaluation belongs to no outer iteration.
    assert found[0].iterations() == [[8.0] * 3]


def test_the_slowest_rank_is_the_iterations_time() -> None:
    (case,) = cases(rows(2, {"gradient": [4.0, 3.0], "data": [0.0, 2.0]}, work=1.0))
    assert case.iterations() == [[5.0] * 3]


def test_from_shared_cores_no_efficiency_is_drawn() -> None:
    one = rows(1, {"gradient": [8.0]}, work=10.0)
    two = rows(2, {"gradient": [4.0, 4.0]}, work=10.0, oversubscribed=True)
    found = cases(one + two)
    assert efficiency(found[1], found, "strong") is None


def test_of_a_run_that_broke_off_nothing_is_told() -> None:
    assert cases(rows(2, {"gradient": [4.0, 4.0]}, work=10.0)[:-1]) == []


def test_what_the_clock_costs_is_told_by_medians_of_turns() -> None:
    assert overhead([1.01, 1.01, 9.0], [1.0, 1.0, 1.0]) == pytest.approx(0.01)


def test_random_samples_have_the_shape_of_mnist() -> None:
    source = like_mnist()
    assert (source.x_train.shape, source.x_test.shape) == ((60_000, 28, 28), (10_000, 28, 28))
    assert len(source.classes) == 10


@pytest.mark.timeout(120)
@pytest.mark.skipif(launcher() is None, reason="no mpirun")
def test_strong_runs_writes_all_rows_and_does_not_run_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.toml").write_text(TINY)
    arguments = ["strong", "--config", str(tmp_path / "plan.toml"), "--out", str(tmp_path)]
    assert main([*arguments, "--timeout", "60"]) == 0
    told = capsys.readouterr().out
    assert told.count("ms an outer iteration") == 4
    results = Results(tmp_path / "strong.jsonl", fresh=False)
    plan = read_plan(tmp_path / "plan.toml", strong=True)
    assert all(is_done(run, results) for batch in jobs(plan, "strong") for run in batch)
    timed = [row for row in results.rows() if row["settings"]["benchmark"] == "strong"]
    assert len(timed) == 2 * (1 + 2) * len(PHASES)
    for row in timed:
        assert row["versions"]["mpi"]
        assert row["binding"]
        assert len(row["seconds"]) >= 8
        assert row["bytes"] > 0
        assert row["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    gradient = [r for r in timed if r["settings"]["phase"] == "gradient"]
    assert all(sum(row["seconds"]) > 0 for row in gradient)
    split = [row for row in results.rows() if row["settings"]["benchmark"] == "split"]
    assert len(split) == 2
    assert all(len(row["on"]) == len(row["off"]) == 30 for row in split)
    text = (tmp_path / "strong.md").read_text()
    assert "apts-scaled" in text
    assert "What the clock costs" in text
    # Now nothing is left to do, which a launcher that cannot work shows.
    assert main([*arguments, "--launch", "false {ranks}"]) == 0


def test_a_job_that_fails_is_told_and_the_status_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.toml").write_text(TINY)
    arguments = ["strong", "--config", str(tmp_path / "plan.toml"), "--out", str(tmp_path)]
    assert main([*arguments, "--launch", "false {ranks}"]) == 1
    assert "status 1" in capsys.readouterr().out

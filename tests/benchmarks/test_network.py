"""``network``: what is tuned and run, what is kept of a run, and runs between real hosts."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")

from apts_mpi.data import load_source, write_shards
from apts_mpi.errors import InputError
from benchmarks.__main__ import main
from benchmarks.harness.hosts import missing
from benchmarks.harness.jobs import ROOT, launcher
from benchmarks.harness.measure import Session
from benchmarks.harness.results import Results, Row
from benchmarks.harness.sections import to_markdown
from benchmarks.messages.network.command import chosen, figures, job
from benchmarks.messages.network.plan import Choice, Network, Plan, read_plan
from benchmarks.messages.network.section import section
from tests.benchmarks.support import needs_mpirun

TINY = """
data = "digits"
target = 0.5
hosts = [2]
links = ["1gbit"]
repetitions = 2
mpi = "tuned"
evaluate_every = 500
[[networks]]
hidden = "16"
epochs = 30.0
[[methods]]
name = "apts"
arguments = []
[[methods]]
name = "ddp-adam"
batches = [50, 100]
learning_rates = [3e-3, 1e-2]
[[methods]]
name = "ddp-muon"
batches = [100]
learning_rates = [1e-2]
[[methods]]
name = "adam"
like = "ddp-adam"
arguments = ["--optimizer", "adam"]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The tiny one."""
    (tmp_path / "plan.toml").write_text(TINY)
    return read_plan(tmp_path / "plan.toml")


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """An empty file of them."""
    return Results(tmp_path / "network.jsonl")


@pytest.fixture
def choice(plan: Plan, results: Results) -> Choice:
    """The runs of the tiny plan."""
    return Choice(plan, results.get)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The digits."""
    write_shards(load_source("digits"), tmp_path / "shards", shards=1)
    return tmp_path / "shards"


KEPT: Row = {
    **{"rank_batch": 50, "local_steps": 9, "parameters": 1, "threads": 1, "cores": 2},
    **{"versions": {"torch": "1"}, "commit": "c", "date": "d", "target": 0.5},
}


def told(results: Results) -> str:
    found = section(results.rows())
    assert found is not None
    return "\n".join(to_markdown(found))


def values(seconds: float | None, epochs: float | None) -> Row:
    return {"seconds_to_target": seconds, "epochs_to_target": epochs}


def test_a_rate_is_best_by_work_and_a_minibatch_by_the_clock(
    plan: Plan, results: Results, choice: Choice
) -> None:
    network, ddp = plan.networks[0], plan.method("ddp-adam")
    work = {(50, 3e-3): 2.0, (50, 1e-2): 1.0, (100, 3e-3): 3.0, (100, 1e-2): None}
    for settings in choice.tuning(network, ddp):
        results.add(settings, values(1.0, work[settings["batch"], settings["lr"]]))
    assert [choice.best_rate(network, ddp, batch) for batch in (50, 100)] == [1e-2, 3e-3]

    def pairs(name: str, repetition: int) -> list[tuple[int | None, float | None]]:
        found = choice.wanted("1gbit", network, plan.method(name), 2, repetition)
        return [(settings["batch"], settings["lr"]) for settings in found]

    assert pairs("ddp-adam", 0) == [(50, 1e-2), (100, 3e-3)]
    assert pairs("apts", 0) == [(None, None)]
    # Not before the clock has told which is best.
    assert pairs("adam", 0) == pairs("ddp-adam", 1) == []
    for settings in choice.wanted("1gbit", network, ddp, 2, 0):
        # More work to do, but sooner done: fewer messages.
        results.add(settings, values(5.0 if settings["batch"] == 50 else 4.0, 1.0))
    assert pairs("adam", 0) == pairs("adam", 1) == pairs("ddp-adam", 1) == [(100, 3e-3)]


def test_the_clock_of_a_run_is_that_of_the_rank_furthest_on() -> None:
    common: Row = {
        **{"epoch": [0.5, 1.0, 1.5, 2.0], "bytes": [10, 20, 30, 40], "messages": [1, 2, 3, 4]},
        "test_accuracy": [0.1, None, 0.97, 0.9],
    }
    one = {**common, "iteration_seconds": [1.0, 2.0, 1.0, 1.0]}
    two = {**common, "iteration_seconds": [2.0, 1.0, 1.0, 3.0]}
    found = figures([one, two], 0.97)
    # Rank 1 is late in the first, rank 0 waits for it in the second: three seconds in all.
    assert found["seconds_to_target"] == 3.0 + 1.0
    assert (found["epochs_to_target"], found["messages_to_target"]) == (1.5, 3)
    assert found["bytes_to_target"] == 30
    assert found["seconds_per_epoch"] == pytest.approx(7.0 / 2.0)
    assert found["curve"]["seconds"] == [2.0, 4.0, 7.0]
    assert figures([one], 0.98)["seconds_to_target"] is None


def test_every_method_has_the_same_minibatch_of_all_ranks_and_epochs(
    plan: Plan, shards: Path
) -> None:
    settings: Row = {"hosts": 2, "batch": 100, "lr": 1e-2, "repetition": 1}
    ours, theirs = (
        job(plan, shards, plan.networks[0], plan.method(name), [settings]).pieces[0].arguments
        for name in ("adam", "ddp-adam")
    )
    words = " ".join(ours["line"])
    assert "--batch 50" in words
    assert "--lr 0.01" in words
    assert "--epochs 30" in words
    assert "--seed 1" in words
    assert (theirs["batch"], theirs["lr"], theirs["epochs"], theirs["seed"]) == (100, 1e-2, 30.0, 1)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"digits"', '"cifar"', "neither mnist nor digits"),
        ("target = 0.5", "target = 50", "between 0 and 1"),
        ('"1gbit"', '"fast"', "'fast'"),
        ('mpi = "tuned"', 'mpi = "best"', "'best' is none of"),
        ('like = "ddp-adam"', 'like = "apts"', "like 'apts'"),
        ("batches = [50, 100]", "batches = []", "rates and batches"),
    ],
)
def test_a_plan_that_is_wrong_is_refused_in_one_line(
    tmp_path: Path, old: str, new: str, line: str
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(TINY.replace(old, new, 1))
    with pytest.raises(InputError, match=line) as caught:
        read_plan(path)
    assert "\n" not in str(caught.value)


def test_the_committed_plan_is_read() -> None:
    read = read_plan(ROOT / "benchmarks" / "network.toml")
    assert read.links == ("unlimited", "1gbit", "100mbit")
    assert read.networks == (Network(hidden="128,128", epochs=6.0), read.networks[1])


def test_without_root_it_says_so_and_skips(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["network", "--out", str(tmp_path)]) == 0
    assert "need root" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(launcher() is None, reason="no mpirun")
@pytest.mark.usefixtures("all_cores")
def test_runs_between_hosts_reach_the_target_and_are_not_made_twice(
    tmp_path: Path,
    plan: Plan,
    results: Results,
    choice: Choice,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    network, ddp = plan.networks[0], plan.method("ddp-adam")
    for settings in choice.tuning(network, ddp):  # as if tuned, and the minibatch chosen
        results.add(settings, values(1.0, 1.0 if settings["batch"] == 100 else None))
    arguments = ["network", "--config", str(tmp_path / "plan.toml"), "--out", str(tmp_path)]
    arguments += ["--methods", "apts,ddp-adam,adam", "--repetitions", "1"]
    assert main([*arguments, "--timeout", "60"]) == 0
    results.read()
    found = {
        row["settings"]["method"]: row
        for row in results.rows()
        if row["settings"]["benchmark"] == "network"
    }
    assert set(found) == {"apts", "ddp-adam", "adam"}
    for row in found.values():
        assert row["seconds_to_target"] > 0
        assert row["curve"]["test_accuracy"][-1] >= plan.target
    # The same method over the same data: nearly the same work, in other messages.
    ours, theirs = found["adam"], found["ddp-adam"]
    assert ours["parameters"] == theirs["parameters"]
    assert ours["epochs_to_target"] == pytest.approx(theirs["epochs_to_target"], rel=0.5)
    assert "sooner" in (tmp_path / "network.md").read_text()
    capsys.readouterr()
    assert main(arguments) == 0
    assert "[" not in capsys.readouterr().out.replace("[mpi]", "")


@needs_mpirun
@pytest.mark.usefixtures("all_cores")
def test_a_run_of_the_reference_ends_where_it_should_or_with_a_line(
    tmp_path: Path,
    plan: Plan,
    results: Results,
    shards: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings: Row = {"hosts": 2, "batch": 100, "lr": 1e-2, "repetition": 0}
    wide = Network(hidden="wide", epochs=1.0)
    session = Session(argparse.Namespace(timeout=60.0), results, tmp_path)
    session.measure([job(plan, shards, wide, plan.method("ddp-adam"), [settings])])
    assert len(session.failed) == 1
    assert results.rows() == []
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "failed" in line)
    assert "'wide'" in line
    muon = [{**settings, "repetition": 1}]
    session.measure([job(plan, shards, plan.networks[0], plan.method("ddp-muon"), muon)])
    (row,) = results.rows()
    assert row["curve"]["test_accuracy"][-1] >= plan.target


def test_a_part_of_the_plan_is_run_and_the_whole_is_told(plan: Plan, choice: Choice) -> None:
    asked = argparse.Namespace(
        hosts=None, links=None, methods=("adam",), networks=None, repetitions=1
    )
    part = chosen(plan, asked)
    assert [method.name for method in part.methods] == ["adam"]
    assert part.repetitions == 1
    # It waits for what it takes its rate from.
    assert choice.wanted("1gbit", plan.networks[0], plan.method("adam"), 2, 0) == []
    for change in ({"methods": ("no",)}, {"links": ("fast",)}, {"hosts": (3,)}):
        with pytest.raises(InputError, match="--"):
            chosen(plan, argparse.Namespace(**{**vars(asked), **change}))


def test_no_time_at_all_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["network", "--timeout", "0"]) == 2
    assert "--timeout" in capsys.readouterr().err


def test_a_run_that_diverged_has_not_reached_the_target(
    plan: Plan, results: Results, choice: Choice
) -> None:
    network = plan.networks[0]
    for repetition in range(2):
        (settings,) = choice.wanted("1gbit", network, plan.method("apts"), 2, repetition)
        row = {**values(None, None), "diverged": "the loss is not finite"}
        if repetition == 0:
            row = {**values(2.0, 1.0), **KEPT}
        results.add(settings, row)
    assert "(1 of 2 did not reach it)" in told(results)


def test_other_settings_are_other_runs(plan: Plan) -> None:
    network, method = plan.networks[0], plan.method("apts")
    keys = [
        made.key(network, method)
        for made in (
            plan,
            dataclasses.replace(plan, target=0.98),
            dataclasses.replace(plan, mpi="ring"),
            dataclasses.replace(plan, evaluate_every=100),
        )
    ]
    keys.append(plan.key(dataclasses.replace(network, epochs=1.0), method))
    keys.append(plan.key(network, dataclasses.replace(method, arguments=("--batch", "9"))))
    assert len(set(keys)) == len(keys)


def test_a_rate_at_the_edge_of_what_was_tried_is_marked(
    plan: Plan, results: Results, choice: Choice
) -> None:
    network, ddp = plan.networks[0], plan.method("ddp-adam")
    for settings in choice.tuning(network, ddp):
        results.add(settings, values(1.0, 1.0))
    for settings in choice.wanted("1gbit", network, ddp, 2, 0):
        results.add(settings, {**values(1.0, 1.0), **KEPT})
    assert "50\\*" in told(results)


def test_the_table_says_how_many_did_not_reach_it(
    plan: Plan, results: Results, choice: Choice
) -> None:
    for repetition, seconds in enumerate((2.0, None)):
        (settings,) = choice.wanted("1gbit", plan.networks[0], plan.method("apts"), 2, repetition)
        results.add(settings, {**values(seconds, seconds), **KEPT})
    assert "(1 of 2 did not reach it)" in told(results)

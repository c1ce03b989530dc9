"""Every parameter alone: what is run, what the verdicts say, what the report tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")

from apts_mpi.cli import main as cli
from apts_mpi.errors import InputError
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import completed
from benchmarks.__main__ import main
from benchmarks.harness.results import Row
from benchmarks.harness.runs import command
from benchmarks.quality.sensitivity import command as sensitivity
from benchmarks.quality.sensitivity.figure import panels
from benchmarks.quality.sensitivity.plan import Plan, Sweep, read_plan, shown, wanted
from benchmarks.quality.sensitivity.report import spreads, verdicts
from benchmarks.quality.sensitivity.values import Swept, swept
from tests.benchmarks.support import Done, FakeMpi, cells_of, rows_of

SMALL = """
seeds = [0, 1]
[[families]]
name = "apts"
data = "digits"
samples = 1437
optimizer = "apts"
ranks = [1, 2]
epochs = 4
most_lost = 0.5
near_lost = 0.1
[families.settings]
hidden = [8]
[families.parameters]
radius = [0.001, 0.1]
local_steps = [3, 5]
averaging = [0, 12, 24, inf]
[families.most_lost_of]
radius = 0.2
[[families]]
name = "sr1"
data = "digits"
samples = 1437
optimizer = "apts"
ranks = [2]
epochs = 1e6
[families.settings]
local_solver = "sr1"
iterations = 3
[families.parameters]
memory = [1, 5]
[[families]]
name = "adam"
data = "digits"
samples = 1437
optimizer = "adam"
ranks = [1]
epochs = 4
batch = 500
[families.parameters]
lr = [0.001, 9]
[[families]]
name = "text"
data = "text"
samples = 800
measured = "loss"
optimizer = "apts"
ranks = [2]
simulated = true
epochs = 1
near_lost = 0.01
[families.settings]
network = "transformer"
depth = 1
[families.parameters]
momentum = [0.3]
"""


def plan_of(folder: Path, text: str = SMALL) -> Plan:
    return read_plan(written(folder, text))


def written(folder: Path, text: str = SMALL) -> Path:
    path = folder / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return path


def sweep_of(plan: Plan, name: str) -> Sweep:
    return next(sweep for sweep in plan.sweeps() if sweep.name == name)


# --- what is run ---


def test_the_plan_that_comes_with_it() -> None:
    plan = read_plan(sensitivity.CONFIG)
    runs = wanted(plan.sweeps(), plan.seeds)
    assert len({repr(settings) for settings in runs}) == len(runs)
    assert {family.data for family in plan.families} == {"mnist", "cifar10", "text"}
    lr = [sweep for sweep in plan.sweeps() if sweep.field == "lr"]
    radius = sweep_of(plan, "radius")
    ratio = [values[-1] / values[0] for values in (s.family.values[s.field] for s in (*lr, radius))]
    assert ratio == pytest.approx([1e4] * len(ratio))  # as many decades
    for sweep in plan.sweeps():
        for ranks in sweep.family.ranks:
            assert sum(point.default for point in sweep.points(ranks)) == 1


def test_points(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    points = sweep_of(plan, "radius").points(2)
    assert [(point.text, point.default) for point in points] == [
        *[("searched", True), ("0.001", False), ("0.1", False)]
    ]
    assert [point.settings["arguments"] for point in points] == [
        *[["--hidden", "8"], ["--hidden", "8", "--radius", "0.001"]],
        ["--hidden", "8", "--radius", "0.1"],
    ]
    # A value that amounts to the default runs once; where none does the default comes in between.
    averaging = sweep_of(plan, "averaging").points(2)
    assert [(p.text, p.settings["arguments"]) for p in averaging if p.default] == [
        ("12", ["--hidden", "8"])
    ]
    assert averaging[3].settings["arguments"] == ["--hidden", "8", "--averaging", "inf"]
    default = completed(TrainConfig(epochs=4.0), 1, 1437).local_steps
    texts = [point.text for point in sweep_of(plan, "local-steps").points(1)]
    assert texts == list(map(shown, sorted({3, 5, default or 0})))
    assert [p.near for p in averaging] == [False, True, True, False]
    sr1 = sweep_of(plan, "sr1-memory").points(2)[1]
    assert command({**sr1.settings, "seed": 0})[-2:] == ["--iterations", "3"]
    text = command({**sweep_of(plan, "text-momentum").points(2)[0].settings, "seed": 0})
    assert text[:3] == ["train", "--network", "transformer"]
    assert text[-6:] == ["--subdomains-per-rank", "2", "--depth", "1", "--momentum", "0.3"]
    lrs = sweep_of(plan, "adam-lr").points(1)
    assert [(p.default, p.settings["lr"], p.settings["batch"]) for p in lrs] == [
        *[(True, 0.001, 500), (False, 9.0, 500)]
    ]
    runs = wanted(plan.sweeps(), (0, 1), ranks=(2,))
    runs = [run for run in runs if run["data"] == "digits"]
    assert {run["ranks"] for run in runs} == {1, 2}
    assert [run["optimizer"] for run in runs if run["ranks"] == 1] == ["adam"] * 4
    alike = [run for run in runs if run["ranks"] == 2 and run["arguments"] == ["--hidden", "8"]]
    assert len(alike) == 2  # once a seed


def test_the_program_takes_every_line() -> None:
    plan = read_plan(sensitivity.CONFIG)
    for settings in wanted(plan.sweeps(), (0,)):
        config = cli.train_settings(command(settings)[1:])
        task = "language" if settings["data"] == "text" else "classification"
        assert completed(config, 1, 60_000, task=task).epochs == settings["epochs"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("", "x", "not valid TOML"),
        ("radius = [0.001", "raduis = [0.001", "'raduis' is not known"),
        ("radius = [0.001", "radius = [-1", "--radius -1"),
        ("local_steps = [3", "local_steps = [3.5", "must be of type int"),
        ("memory = [1, 5]", "memory = []", "no values"),
        ("batch = 500", "", "batch is for"),
        ("lr = [0.001", "seed = [1]\nlr = [0.001", "only parameter"),
        ("samples = 800", "", "samples is missing"),
        ('measured = "loss"', 'measured = "bytes"', "measured is none of accuracy, loss"),
        ('data = "text"', 'data = "arrays"', "data is none of digits"),
        ('name = "sr1"', 'name = "apts"', "names of their own"),
        ("ranks = [1]", "ranks = [0]", "positive"),
        ("radius = 0.2", "momentum = 0.2", "'momentum' is not known"),
    ],
)
def test_bad_plans(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = written(tmp_path, SMALL.replace(old, new) if old else new)
    with pytest.raises(InputError) as caught:
        read_plan(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# --- what is told ---


def done_of(plan: Plan, score: Callable[[Row], float | None]) -> list[Swept]:
    done = Done(score)
    done.make(wanted(plan.sweeps(), plan.seeds))
    return swept(plan, plan.seeds, done.get)


def test_verdicts(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)

    def score(settings: Row) -> float | None:
        told = " ".join(settings["arguments"]).removeprefix("--hidden 8 ")
        seeded = 0.01 * settings["seed"]  # which all runs of a seed share
        if settings["data"] == "text":
            return 0.48 if "--momentum" in told else 0.5
        if settings.get("lr") == 9.0:
            return None if settings["seed"] else 0.2
        if told == "--radius 0.1":
            return 0.957 + seeded
        if told == "--averaging inf" and settings["ranks"] == 2:
            return 0.95 + seeded
        return 0.96 + seeded

    found = done_of(plan, score)
    family, near, radius, text = verdicts(plan, found)
    assert family.worst is not None
    assert family.worst[0] == pytest.approx(1.0)
    assert [item[1].sweep.name for item in family.over] == ["averaging"]
    assert family.sentence() == (
        "No single choice of apts costs more than 0.5 points: missed. Those that do: --averaging "
        "inf at N = 2 (1.00)."
    )
    assert near.over == []  # of 3 to 5 local steps, and of 24 for the average, none loses
    assert {value.point.text for _, _, value in near.losses} >= {"24"}
    assert text.sentence() == (
        "No choice of text within a factor of two of the default costs more than 0.01 nats: "
        "missed. Those that do: text --momentum 0.3 at N = 2 (0.0200)."
    )
    assert len(radius.over) == 2
    assert radius.sentence().startswith("No --radius from 0.001 to 0.1 costs more than 0.2 points")
    assert [line.split(":")[0] for line in spreads(found)] == [
        *["--radius 0.001 to 0.1, N = 1", "--radius 0.001 to 0.1, N = 2"],
        *["sr1 --memory 1 to 5, N = 2", "adam --lr 0.001 to 9"],
        "text --momentum 0.3 to 0.3, N = 2",
    ]
    assert spreads(found)[3].endswith("15.00 to 96.50 %, 81.50 points")  # 20 and chance
    shown = {title: [item.sweep.label for item in bars] for title, bars in panels(plan, found)}
    assert list(shown) == ["digits, N = 1", "digits, N = 2", "text, N = 2"]
    assert shown["digits, N = 2"][:2] == ["--averaging", "--radius"]  # the widest first
    assert shown["digits, N = 2"][-1] == "adam --lr"


def test_met_and_missing(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    met = verdicts(plan, done_of(plan, lambda _: 0.9))
    assert [verdict.over for verdict in met] == [[]] * 4
    assert "points: met. The worst: " in met[0].sentence()
    nothing = verdicts(plan, swept(plan, plan.seeds, lambda _: None))
    assert nothing[0].sentence() == "No single choice of apts: not run yet."
    # The default of the text's momentum is 0.6, and 0.3 the only value beside it.
    far = plan_of(tmp_path, SMALL.replace("momentum = [0.3]", "momentum = [0.1]"))
    last = verdicts(far, done_of(far, lambda _: 0.9))[-1]
    assert last.sentence().endswith("factor of two of the default: none in this plan.")
    # Seeds are compared with the same seeds: the second one is better, and only the default has it.
    done = Done(lambda s: 0.9 + 0.05 * s["seed"])
    runs = wanted(plan.sweeps(), plan.seeds)
    done.make([s for s in runs if s["arguments"] == [] or s["seed"] == 0])
    half = verdicts(plan, swept(plan, plan.seeds, done.get))
    assert half[0].worst is not None
    assert half[0].worst[0] == pytest.approx(0.0)
    done = Done(lambda _: 0.9)
    done.make([s for s in runs if "--radius" not in s["arguments"]])
    partly = verdicts(plan, swept(plan, plan.seeds, done.get))
    assert "met so far, 4 values are missing" in partly[0].sentence()


# --- how it is run ---


def called(tmp_path: Path, *options: str) -> int:
    common = ["sensitivity", "--config", str(written(tmp_path)), "--out", str(tmp_path / "out")]
    return main([*common, *options])


def test_runs_all_and_resumes(
    tmp_path: Path, fake: FakeMpi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APTS_MPI_TEST_DATA", str(tmp_path))
    (tmp_path / "tinyshakespeare.txt").write_text("To be, or not to be: " * 500, encoding="utf-8")
    assert called(tmp_path, "--parameters", "radius", "--ranks", "2", "--seeds", "1") == 0
    out = tmp_path / "out"
    assert len(rows_of(out / "sensitivity.jsonl")) == 3
    text = (out / "sensitivity.md").read_text(encoding="utf-8")
    assert "**Not complete:**" in text
    assert called(tmp_path, "--jobs", "2") == 0
    plan = plan_of(tmp_path)
    everything = len(wanted(plan.sweeps(), plan.seeds))
    assert len(fake.ran) == len(rows_of(out / "sensitivity.jsonl")) == everything
    text = (out / "sensitivity.md").read_text(encoding="utf-8")
    assert f"{everything} runs, of which 2 diverged." in text
    assert "Not complete" not in text
    lines = {tuple(line[:2]): line for line in cells_of(text)}
    assert lines["--radius", "2"][2:] == [
        *("searched, 0.001, 0.1", "**70.00**, 70.00, 70.00", "0.00", "0.00", "0.001")
    ]
    assert lines["adam --lr", "any"][3:] == ["**70.00**, diverged", "60.00", "60.00", "9"]
    assert (out / "sensitivity.png").stat().st_size > 1000
    fake.ran.clear()
    assert called(tmp_path) == 0
    assert fake.ran == []
    assert called(tmp_path, "--fresh", "--parameters", "sr1-memory", "--seeds", "0") == 0
    assert len(fake.ran) == 2
    (out / "sensitivity.md").unlink()
    assert called(tmp_path, "--report-only", "--fresh") == 0
    assert (out / "sensitivity.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--parameters", "nope"], "--parameters nope: is none of radius, local-steps"),
        (["--jobs", "0"], "--jobs"),
        (["--config", "/nowhere.toml"], "/nowhere.toml: cannot be read"),
    ],
)
def test_bad_usage(
    tmp_path: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(tmp_path, *options) == 2
    assert told in capsys.readouterr().err

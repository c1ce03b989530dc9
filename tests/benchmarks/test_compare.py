"""The comparison with tuned baselines: what is run, who is chosen, what the report tells."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")

from apts_mpi.errors import InputError
from benchmarks.__main__ import main
from benchmarks.harness import data, measure
from benchmarks.harness.jobs import RunFailed, mpirun
from benchmarks.harness.results import KEPT, Results, Row
from benchmarks.harness.runs import batches, command
from benchmarks.quality.compare import command as compare
from benchmarks.quality.compare.figure import joined
from benchmarks.quality.compare.plan import MEASURES, Group, groups, read_plan
from benchmarks.quality.compare.report import entries, fewer, rank_losses, verdicts
from tests.benchmarks.test_benchmarks import cells_of, needs_mpirun, rows_of, run

SMALL = """
[[methods]]
name = "apts"
optimizer = "apts"
[[methods]]
name = "adam"
optimizer = "adam"
learning_rates = [0.001, 0.01, 9.0]
batches = [100, 400]
finalists = 2
[[methods]]
name = "local-sgd"
optimizer = "local-sgd"
learning_rates = [0.1]
batches = [100]
samples_per_message = 500
least_ranks = 2
[[sets]]
name = "small"
source = "digits"
hidden = [8]
ranks = [1, 2]
epochs = 4
seeds = [0, 1, 2]
rank_loss = 0.3
"""


def plan_of(folder: Path, text: str = SMALL) -> Path:
    path = folder / "compare.toml"  # the results have its name
    path.write_text(text, encoding="utf-8")
    return path


def group_of(folder: Path, name: str, ranks: int, text: str = SMALL) -> Group:
    (data,) = read_plan(plan_of(folder, text))
    (group,) = [g for g in groups(data) if (g.method.name, g.ranks) == (name, ranks)]
    return group


def result(settings: Row, accuracy: float | None, messages: int = 40) -> Row:
    """A run as it is written down."""
    if accuracy is None:
        return {"settings": settings, "test_accuracy": None, "diverged": "not finite"}
    steps = [1, 2, 3, 4]
    curves = {
        "epoch": [float(step) for step in steps],
        "test_accuracy": [accuracy * step / 4 for step in steps],
        "messages": [messages * step / 4 for step in steps],
    }
    more = {"epochs": 4.0, "vector_allreduces": messages, "bytes_allreduced": 10**6 * messages}
    setup = {"versions": {"torch": "2"}, "cores": 2, "threads_per_rank": 1, "commit": "c"}
    told = {"command": "train", "date": "2026-01-01", "curves": curves, **more, **setup}
    return {"settings": settings, "test_accuracy": accuracy, **told}


class Done:
    """Runs that are done, looked up as in ``Results``."""

    def __init__(self, score: Callable[[Row], float | None], messages: int = 40) -> None:
        self.score, self.messages, self.rows = score, messages, list[Row]()

    def make(self, wanted: list[Row]) -> None:
        self.rows += [
            result(settings, self.score(settings), self.messages)
            for settings in wanted
            if self.get(settings) is None
        ]

    def get(self, settings: Row) -> Row | None:
        return next((row for row in self.rows if row["settings"] == settings), None)


# --- what is run ---


def test_the_plan_that_comes_with_it() -> None:
    mnist, cifar10, digits = read_plan(compare.CONFIG)
    assert (mnist.name, cifar10.name, digits.name) == ("mnist", "cifar10", "digits")
    counts = {(g.method.name, g.ranks): len(g.wanted(lambda _: None)) for g in groups(mnist)}
    assert counts["apts", 16] == 3
    assert counts["adam", 1] == counts["sgd", 1] == 30
    assert counts["diloco", 8] == 3  # until its finalists are known
    assert [n for name, n in counts if name == "diloco"] == [2, 4, 8, 16]
    for name in ("apts", "local-sgd"):
        assert [g.ranks for g in groups(cifar10) if g.method.name == name] == [2, 8]
    assert {g.method.name: g.method.finalists for g in groups(cifar10)}["adam"] == 2
    local = next(g for g in groups(mnist) if (g.method.name, g.ranks) == ("diloco", 16))
    steps = {c["batch"]: c["local_steps"] for c in local.candidates()}
    assert steps == {500: 20}


def test_command_lines(tmp_path: Path) -> None:
    candidate = group_of(tmp_path, "apts", 2).candidates()[0]
    common = "train --hidden 8 --epochs 4 --seed 1 --device cpu --threads 1 --evaluate-every 1"
    assert command({**candidate, "seed": 1}) == common.split()
    candidate = group_of(tmp_path, "local-sgd", 2).candidates()[0]
    told = " ".join(command({**candidate, "seed": 1}))
    assert told == f"{common} --optimizer local-sgd --lr 0.1 --batch 50 --local-steps 5"
    text = SMALL.replace('optimizer = "apts"', 'optimizer = "apts"\narguments = ["--memory", "3"]')
    candidate = group_of(tmp_path, "apts", 1, text).candidates()[0]
    assert command({**candidate, "seed": 1})[-2:] == ["--memory", "3"]


def test_batches_of_runs_share_data_and_ranks() -> None:
    todo = [{"data": "d", "ranks": ranks, "n": n} for n in range(25) for ranks in (1, 2)]
    made = list(batches(todo, 1))
    assert [len(batch) for batch in made] == [10, 10, 5] * 2
    assert all(len({settings["ranks"] for settings in batch}) == 1 for batch in made)
    assert max(len(batch) for batch in batches(todo, 2)) == 7
    assert sorted(map(repr, todo)) == sorted(repr(s) for batch in made for s in batch)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("", "x", "not valid TOML"),
        ('optimizer = "adam"', 'optimizer = "lion"', "'lion' is none of"),
        ('optimizer = "apts"', 'optimizer = "apts"\nbatches = [3]', "batches are for"),
        ("batches = [100]", "", "which need them"),
        ("samples_per_message = 500", "", "samples_per_message"),
        ("batches = [100]", "batches = [0]", "too small"),
        ("finalists = 2", 'finalists = "2"', "'2' must be of type int"),
        ("hidden = [8]", "hidden = 8", "hidden must be a list"),
        ("hidden = [8]", "", "needs hidden, or network"),
        ("epochs = 4", "epochs = 0", "positive"),
        ("ranks = [1, 2]", "ranks = []", "missing"),
        ("rank_loss = 0.3", "shown = 3", "shown = 3"),
        ("rank_loss = 0.3", "[sets.methods.lion]\nfinalists = 1", "lion, which is no method"),
        ("rank_loss = 0.3", "[sets.methods.adam]\nspeed = 1", "'speed' is not known"),
        ('source = "digits"', 'source = "arrays"', "'arrays' is none of"),
        ('name = "adam"', 'name = "apts"', "share a name"),
    ],
)
def test_bad_plans(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = plan_of(tmp_path, SMALL.replace(old, new) if old else new)
    with pytest.raises(InputError) as caught:
        read_plan(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# --- who is chosen ---


def score(settings: Row) -> float | None:
    """Better at 0.01 and the larger batch on seed 0, at 0.001 on the others; 9 diverges."""
    if settings.get("lr") == 9.0:
        return None
    if settings["optimizer"] != "adam":
        return 0.9 if settings["optimizer"] == "apts" else 0.8
    first, good = settings["seed"] == 0, settings["lr"] == 0.01
    return 0.5 + 0.1 * (good == first) + 0.0001 * settings["batch"]


def test_halving(tmp_path: Path) -> None:
    adam, done = group_of(tmp_path, "adam", 1), Done(score)
    assert adam.finalists(done.get) is None
    assert adam.best(done.get) is None
    first = adam.wanted(done.get)
    assert len(first) == 6
    assert {settings["seed"] for settings in first} == {0}
    done.make(first[:5])
    assert adam.finalists(done.get) is None  # chosen only when all are known
    done.make(first)
    finalists = adam.finalists(done.get)
    assert finalists is not None
    assert [(c["lr"], c["batch"]) for c in finalists] == [(0.01, 400), (0.01, 100)]
    assert len(adam.wanted(done.get)) == 6 + 2 * 2
    assert len(adam.wanted(done.get, seeds=(1,))) == 2
    best = adam.best(done.get)
    assert best is not None
    assert best[0]["batch"] == 400
    done.make(adam.wanted(done.get))
    best = adam.best(done.get)
    assert best is not None
    assert (best[0]["lr"], best[0]["batch"], len(best[1])) == (0.01, 400, 3)


def test_the_whole_grid_on_all_seeds(tmp_path: Path) -> None:
    text = SMALL + "[sets.methods.adam]\nfinalists = 0\n"
    adam, done = group_of(tmp_path, "adam", 1, text), Done(score)
    assert len(adam.wanted(done.get)) == 6 * 3
    done.make(adam.wanted(done.get))
    best = adam.best(done.get)
    assert best is not None
    assert best[0]["lr"] == 0.001  # the best on two seeds of three


def test_diverged_on_one_seed_is_not_best(tmp_path: Path) -> None:
    adam = group_of(tmp_path, "adam", 1)
    done = Done(lambda s: None if (s["lr"], s["seed"]) == (0.01, 2) else score(s))
    for _ in range(2):
        done.make(adam.wanted(done.get))
    best = adam.best(done.get)
    assert best is not None
    assert all(row["test_accuracy"] is None or row["settings"]["lr"] == 0.01 for row in best[1])
    (entry,) = [e for e in entries(adam.data, done.get) if e.method.name == "adam"]
    assert entry.figures == []
    assert math.isnan(entry.mean)
    assert entry.score == -math.inf


# --- how it is run ---


class FakeMpi:
    """Stands for ``mpirun``: writes what the program would, and says what the worker would."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []
        self.dies_at = self.fails_at = ""
        self._lock = threading.Lock()

    def __call__(
        self,
        ranks: int,
        arguments: list[str],
        *,
        timeout: float,
        heard: Callable[[str], object] = lambda line: None,
    ) -> None:
        assert timeout > 0
        path = Path(arguments[-1])
        pieces = json.loads(path.read_text(encoding="utf-8"))["pieces"]
        for number, (line,) in enumerate(piece["lines"] for piece in pieces):
            told = " ".join(line)
            with self._lock:
                self.ran.append(line)
            if self.dies_at and self.dies_at in told:
                raise RunFailed("status 1: died")
            if "--lr 9 " in told:
                heard(f"ended {number} the loss of iteration 3 is not finite: lower --lr")
            elif self.fails_at and self.fails_at in told:
                heard(f"ended {number} --lr: unknown")
            else:
                self._write(path.parent / str(number) / "run", told)
                for rank in range(ranks):
                    path.parent.joinpath(str(number), f"rank-{rank}.json").write_text("null")
                heard(f"ended {number}")

    def _write(self, folder: Path, told: str) -> None:
        folder.mkdir()
        names: dict[str, Any] = dict.fromkeys(("epochs", *KEPT), 1)
        accuracy = 0.9 if "--lr 0.01 " in told else 0.7
        summary = {**names, "test_accuracy": accuracy, "vector_allreduces": 6}
        summary |= {"outer_iterations": 3, "versions": {"torch": "2"}}
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        rows: list[Row] = [{"iteration": i, "epoch": i + 0.5, "loss": 1.0} for i in (1, 2, 3)]
        rows[2] |= {"test_accuracy": accuracy, "test_loss": 0.5}
        rows[0] |= {"test_accuracy": 0.1, "test_loss": 2.3}
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeMpi:
    made = FakeMpi()
    monkeypatch.setattr(measure, "mpirun", made)
    return made


def called(tmp_path: Path, *options: str) -> int:
    common = ["compare", "--config", str(plan_of(tmp_path)), "--out", str(tmp_path / "out")]
    return main([*common, *options])


EVERYTHING = 2 * 3 + (6 + 2 * 2) + 3  # apts, adam with its finalists, local-sgd


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_runs_all_and_resumes(tmp_path: Path, fake: FakeMpi, jobs: str) -> None:
    assert called(tmp_path, "--jobs", jobs) == 0
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


def test_where_cifar_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"cifar-10-binary\.tar\.gz"):
        data.find_cifar10(tmp_path)
    inside = tmp_path / "cifar10" / "cifar-10-batches-bin"
    inside.mkdir(parents=True)
    (inside / "test_batch.bin").touch()
    monkeypatch.setenv("APTS_MPI_TEST_DATA", str(tmp_path))
    assert data.find_cifar10(None) == inside.parent
    assert data.find_cifar10(inside) == inside


def test_many_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    files = [Results(path) for _ in range(4)]

    def add(number: int) -> None:
        for i in range(50):
            files[number].add({"file": number, "run": i}, {"text": "x" * 20000})

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files[0].get({"file": 3, "run": 0}) is None
    files[0].read()
    assert files[0].get({"file": 3, "run": 0}) is not None
    files[0].forget({"file": 3, "run": i} for i in range(50))
    again = Results(path)
    assert again.get({"file": 3, "run": 0}) is None
    assert again.get({"file": 2, "run": 49}) is not None
    assert len(rows_of(path)) == 150


# --- what is told ---


def test_verdicts(tmp_path: Path) -> None:
    (data,) = read_plan(plan_of(tmp_path))
    accuracies = {("apts", 1): 0.9500, ("apts", 2): 0.9462, ("adam", 1): 0.948}
    accuracies["local-sgd", 2] = 0.9464
    messages = {"apts": 20, "adam": 300, "local-sgd": 10}
    done = Done(lambda s: None if s.get("lr") == 9 else accuracies[s["optimizer"], s["ranks"]])
    for group in groups(data) * 2:
        done.messages = messages[group.method.name]
        done.make(group.wanted(done.get))
    found = entries(data, done.get)
    assert [(e.method.name, e.group.ranks) for e in found] == [
        *[("apts", 1), ("apts", 2)],
        *[("adam", 1), ("local-sgd", 2)],
    ]
    assert found[2].worst == -math.inf
    assert found[2].tuned["batch"] == 400  # of equals
    assert fewer(found[2], found[0]) == pytest.approx(15)
    one, two = verdicts(data, found)
    assert one.goals() == {"accuracy": "met", "bytes": "nearly"}
    assert one.cells()[:8] == ["apts", "1", "adam", "+0.20", "1/15.0", "-", "-", "-"]
    assert two.goals() == {"accuracy": "met", "bytes": "nearly", "local": "missed"}
    assert two.cells()[5:8] == ["local-sgd", "-0.02", "1/0.5"]
    told = "From N = 1 to 2 apts loses 0.38 points (goal: at most 0.3): missed."
    assert rank_losses(data, found) == [told]


def test_report(tmp_path: Path, fake: FakeMpi) -> None:
    assert called(tmp_path) == 0
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    lines = {tuple(line[:2]): line for line in cells_of(text) if len(line) > 9}
    adam = lines["adam", "any"]
    assert adam[2:4] == ["90.00 [90.00, 90.00]", "3"]
    assert adam[7:] == ["0.01", "400", "-", "diverged"]
    assert lines["local-sgd", "2"][7:] == ["0.1", "100", "5", "70.00"]
    assert lines["apts", "2"][2:6] == ["70.00 [70.00, 70.00]", "3", "1.0", "6"]
    assert "compare_small.png" in text
    assert (tmp_path / "out" / "compare_small.png").stat().st_size > 1000


def test_curves_of_unlike_lengths_join() -> None:
    def row(epochs: list[float], accuracies: list[float]) -> dict[str, Any]:
        curves = {"epoch": epochs, "test_accuracy": accuracies, "messages": epochs}
        return {"curves": curves, "vector_allreduces": 4, "bytes_allreduced": 8 * 10**6}

    rows = [row([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4]), row([1.5, 3.5], [0.0, 0.2])]
    x, values = joined(rows, "epoch", MEASURES["accuracy"])
    assert x.tolist() == [2, 3]
    assert values[1].tolist() == pytest.approx([5, 15])
    x, _ = joined(rows, "megabytes", MEASURES["accuracy"])
    assert x.tolist() == [4, 6]
    x, values = joined([row([1], [0.5]), row([2], [0.7])], "epoch", MEASURES["accuracy"])
    assert values.tolist() == [[50], [70]]
    assert math.isfinite(x[0])


# --- with the program itself ---


@needs_mpirun
def test_the_clock_starts_anew_with_every_run() -> None:
    ticks = "import time\nfor i in range(5): time.sleep(0.6); print('tick', flush=True)"
    mpirun(1, ["-c", ticks], timeout=2.5, heard=lambda line: line == "tick")


@needs_mpirun
@pytest.mark.usefixtures("all_cores")
def test_end_to_end(tmp_path: Path) -> None:
    text = SMALL.replace("[0.1]", "[0.1, 1e30]").replace("epochs = 4", "epochs = 14")
    plan, out = plan_of(tmp_path, text), tmp_path / "out"
    options = ["--methods", "apts,local-sgd", "--ranks", "2", "--seeds", "0"]
    done = run("-m", "benchmarks", "compare", "--config", plan, "--out", out, *options)
    assert done.returncode == 0, done.stderr + done.stdout
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

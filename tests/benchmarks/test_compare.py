"""The comparison with tuned baselines: what is run, who is chosen, what the report tells."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install .[bench]")

from apts_mpi.errors import InputError
from benchmarks.harness.results import Row
from benchmarks.harness.runs import MEASURES, command
from benchmarks.quality.compare import command as compare
from benchmarks.quality.compare.entries import Entry, best, planned
from benchmarks.quality.compare.plan import Group, groups, read_plan
from benchmarks.quality.compare.verdicts import fewer, rank_losses, verdicts
from tests.benchmarks.support import Done

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


def best_of(group: Group, done: Done) -> Entry | None:
    found = [e for e in planned(group.data, done.get) if e.method == group.method.name]
    return found[0] if found else None


# --- what is run ---


def test_the_plan_that_comes_with_it() -> None:
    mnist, cifar10, digits = read_plan(compare.CONFIG)
    assert (mnist.name, cifar10.name, digits.name) == ("mnist", "cifar10", "digits")
    counts = {(g.method.name, g.ranks): len(g.wanted(lambda _: None)) for g in groups(mnist)}
    assert counts["apts", 16] == 3
    assert counts["adam", 1] == counts["sgd", 1] == 30
    assert counts["diloco", 8] == 3  # until its finalists are known
    assert [n for name, n in counts if name == "diloco"] == [2, 4, 8, 16]
    peers = ("adamw", "sgd-cosine", "muon", "schedule-free")
    assert {counts[name, 1] for name in peers} == {5}
    assert counts["prodigy", 1] == 3
    assert counts["muloco", 8] == counts["diloco-cosine", 8] == 3
    for name in ("apts", "local-sgd"):
        assert [g.ranks for g in groups(cifar10) if g.method.name == name] == [2, 8]
    assert {g.method.name: g.method.finalists for g in groups(cifar10)}["adam"] == 2
    local = next(g for g in groups(mnist) if (g.method.name, g.ranks) == ("diloco", 16))
    steps = {c["batch"]: c["local_steps"] for c in local.candidates()}
    assert steps == {500: 20}


def test_a_set_has_batches_and_messages_of_its_own(tmp_path: Path) -> None:
    own = "batches = [50]\nsamples_per_message = 200\n"
    text = SMALL + own + "[sets.methods.adam]\nbatches = [70]\n"
    grids = {
        name: [c["batch"] for c in group_of(tmp_path, name, ranks, text).candidates()]
        for name, ranks in (("adam", 1), ("local-sgd", 2))
    }
    assert grids == {"adam": [70] * 3, "local-sgd": [50]}
    assert group_of(tmp_path, "local-sgd", 2, text).candidates()[0]["local_steps"] == 4
    assert "batch" not in group_of(tmp_path, "apts", 2, text).candidates()[0]


def test_the_plan_beyond_it() -> None:
    plan = {data.name: data for data in read_plan(compare.CONFIG.with_name("beyond.toml"))}
    text = {g.method.name: g.candidates() for g in groups(plan["transformer"])}
    assert {c["batch"] for c in text["muon"]} == {32}
    assert {c["local_steps"] for c in text["muloco"]} == {10}
    assert len(text["muon"]) == len(text["muloco"]) == 3
    assert text["muon"][0]["arguments"] == ["--schedule", "cosine", "--warmup", "5"]
    bits = {g.method.name: g.candidates() for g in groups(plan["transformer-int4"])}
    assert bits["muon"] == text["muon"], "the same runs stand for both"


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
    assert best_of(adam, done) is None
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
    best = best_of(adam, done)
    assert best is not None
    assert best.settings["batch"] == 400
    done.make(adam.wanted(done.get))
    best = best_of(adam, done)
    assert best is not None
    assert (best.settings["lr"], best.settings["batch"], len(best.rows)) == (0.01, 400, 3)


def test_the_whole_grid_on_all_seeds(tmp_path: Path) -> None:
    text = SMALL + "[sets.methods.adam]\nfinalists = 0\n"
    adam, done = group_of(tmp_path, "adam", 1, text), Done(score)
    assert len(adam.wanted(done.get)) == 6 * 3
    done.make(adam.wanted(done.get))
    best = best_of(adam, done)
    assert best is not None
    assert best.settings["lr"] == 0.001  # the best on two seeds of three


def test_diverged_on_one_seed_is_not_best(tmp_path: Path) -> None:
    adam = group_of(tmp_path, "adam", 1)
    done = Done(lambda s: None if (s["lr"], s["seed"]) == (0.01, 2) else score(s))
    for _ in range(2):
        done.make(adam.wanted(done.get))
    best = best_of(adam, done)
    assert best is not None
    assert best.figures == []
    assert math.isnan(best.mean)
    assert best.score == -math.inf


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
    found = planned(data, done.get)
    assert [(e.method, e.ranks) for e in found] == [
        *[("apts", 1), ("apts", 2)],
        *[("adam", 1), ("local-sgd", 2)],
    ]
    assert found[2].worst == -math.inf
    assert found[2].settings["batch"] == 400  # of equals
    assert fewer(found[2], found[0]) == pytest.approx(15)
    one, two = verdicts(data, found)
    assert one.goals() == {"accuracy": "met", "bytes": "nearly"}
    assert one.cells()[:8] == ["APTS", "1", "Adam", "+0.20", "1/15.0", "-", "-", "-"]
    assert two.goals() == {"accuracy": "met", "bytes": "nearly", "local": "missed"}
    assert two.cells()[5:8] == ["Local SGD", "-0.02", "1/0.5"]
    told = "From N = 1 to 2 APTS loses 0.38 points (goal: at most 0.3): missed."
    assert rank_losses(data, found) == [told]


@pytest.mark.parametrize(
    ("rates", "found"),
    [
        ([(1e-3, 0.9), (3e-3, 0.8), (1e-2, 0.7)], "0.001*"),
        ([(1e-3, 0.8), (3e-3, 0.9), (1e-2, 0.7)], "0.003"),
        ([(1e-3, 0.7), (3e-3, 0.8), (1e-2, 0.9)], "0.01*"),
        ([(1.0, 0.9)], "1"),  # none is to be chosen
        ([(None, 0.9)], "-"),
    ],
)
def test_a_rate_at_the_edge_of_a_grid_has_a_star(
    rates: list[tuple[float | None, float]], found: str
) -> None:
    def rows(batch: int, lr: float | None, accuracy: float) -> list[Row]:
        settings = {"optimizer": "adam", "batch": batch, "lr": lr, "seed": 0}
        return [{"settings": settings, "test_accuracy": accuracy, "test_loss": 1.0}]

    tried = [rows(64, *each) for each in rates]
    if rates[0][0] is not None:  # another minibatch's rates are not beside it
        tried += [rows(500, lr, 0.1) for lr in (1e-5, 10.0)]
    entry = best("adam", 1, tried, MEASURES["accuracy"])
    assert entry is not None
    assert entry.rate == found


def test_curves_of_unlike_lengths_join() -> None:
    def row(epochs: list[float], accuracies: list[float]) -> dict[str, Any]:
        curves = {"epoch": epochs, "test_accuracy": accuracies, "messages": epochs}
        return {"curves": curves, "vector_allreduces": 4, "bytes_allreduced": 8 * 10**6}

    def curve(rows: list[Row], axis: str) -> tuple[Any, Any]:
        return Entry("apts", 2, rows, MEASURES["accuracy"], 1, None, False).curve(axis)

    rows = [row([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4]), row([1.5, 3.5], [0.0, 0.2])]
    x, values = curve(rows, "epoch")
    assert x.tolist() == [2, 3]
    assert values[1].tolist() == pytest.approx([5, 15])
    x, _ = curve(rows, "megabytes")
    assert x.tolist() == [4, 6]
    x, values = curve([row([1], [0.5]), row([2], [0.7])], "epoch")
    assert values.tolist() == [[50], [70]]
    assert math.isfinite(x[0])

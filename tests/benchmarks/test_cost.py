"""What the method costs: the same evaluations are replayed, memory is counted, goals are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from apts_mpi.comm.communicator import Comm
from benchmarks.__main__ import main
from benchmarks.cost.overhead import command as cost
from benchmarks.cost.overhead import worker as cost_worker
from benchmarks.cost.overhead.cases import METHODS, NETWORKS, SOLVERS, Network
from benchmarks.cost.overhead.measure import Contest, measure, replay
from benchmarks.cost.overhead.memory import PeakVectors, bytes_held
from benchmarks.cost.overhead.report import report, vectors_allowed, verdicts
from benchmarks.harness.results import Row
from tests.benchmarks.test_benchmarks import cells_of, rows_of

TINY = Network(6, (5,), 15.0, 2)
SMALL = Network(100, (200, 100), 15.0, 2)  # beside whose vectors a message's scalars are little


class Counted:
    """Stands for a network: remembers what is evaluated."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bool]] = []

    def loss(self, x: int, y: int) -> float:
        self.seen.append((x, False))
        return 0.0

    def loss_and_gradient(self, x: int, y: int) -> float:
        self.seen.append((x, True))
        return 0.0


def test_replay_makes_the_same_calls() -> None:
    network: Any = Counted()
    pool: Any = [(0, 0), (1, 1), (2, 2)]
    calls, steps = [(2, True), (0, False), (1, True), (1, True)], list[int]()
    replay(network, pool, calls)
    assert network.seen == calls
    replay(network, pool, calls, lambda: steps.append(1))
    assert network.seen == 2 * calls
    assert len(steps) == 3  # one a gradient


@pytest.mark.parametrize("solver", SOLVERS[:2])
def test_an_iteration_is_written_down(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contest = Contest(TINY, solver, Comm())
    network, made = contest.own, list[bool]()
    both = (network.loss_and_gradient, network.loss)

    def spied(kind: bool) -> Any:
        def evaluate(x: torch.Tensor, y: torch.Tensor) -> float:
            made.append(kind)
            return both[0](x, y) if kind else both[1](x, y)

        return evaluate

    monkeypatch.setattr(network, "loss_and_gradient", spied(True))
    monkeypatch.setattr(network, "loss", spied(False))
    calls = contest.iterate()
    assert [with_gradient for _, with_gradient in calls] == made
    assert sum(made) >= 1
    parameters = contest.bare.vector.clone()
    (turn,) = contest.turns(1)
    assert turn.calls
    assert all(wall > 0 for wall, _ in (turn.own, turn.bare, turn.adam))
    assert parameters.shape == contest.bare.vector.shape
    assert not torch.equal(contest.adams.vector, contest.bare.vector)  # Adam has moved


def test_memory() -> None:
    before = bytes_held()
    kept = torch.zeros(1000)
    views = [kept[:10], kept.view(10, 100)]
    assert bytes_held() - before == 4000
    assert len(views) == 2
    with PeakVectors(1000) as peak:
        kept.add_(1.0)
        assert peak.most == 0  # in place
        once = kept + 1.0
        twice = once * 2.0
        del once, twice
        assert torch.zeros(3).sum() == 0  # too small to tell
        assert float((kept - 1.0).sum()) == 0.0
    assert peak.most == 8000

    def draw() -> tuple[Any, int]:
        return lambda with_gradient: float((kept + kept).sum()), 1

    with PeakVectors(1000) as peak:
        objective, _ = peak.unseen(draw)()
        objective(True)
        assert peak.most == 0
        kept.sub(1.0)
    assert peak.most == 4000


def test_memory_of_the_methods() -> None:
    comm = Comm()
    rows = measure(SMALL, "scaled", comm, 2)
    assert list(rows) == ["scaled", "adam"]
    assert rows["adam"]["held"] == pytest.approx(2.0, abs=0.01)
    assert 2.0 < rows["scaled"]["held"] < 12.0
    assert rows["scaled"]["peak"] >= rows["scaled"]["held"]
    assert len(rows["scaled"]["overhead"]) == len(rows["adam"]["overhead_processor"]) == 3
    steps = rows["scaled"]["local_steps"]
    assert rows["scaled"]["gradients"] >= steps


def row_of(
    network: str, method: str, ranks: int = 1, added: float = 9.0, held: float = 6.0005
) -> Row:
    return {
        "settings": cost.settings(ranks, network, method),
        **{"gradients": 42, "forwards": 1, "local_steps": 42, "memory": 5, "repetitions": 9},
        **{"seconds_bare": 0.1, "seconds": 0.11, "peak": None if method == "adam" else 8.0},
        **{"overhead": [8.0, 99.0, 110.0], "overhead_processor": [8.0, added, 12.0], "held": held},
        **{"load": 1.0, "cores": 2, "threads_per_rank": 1, "commit": "c", "date": "2026-01-01"},
        **{"versions": {"torch": "2"}},
    }


def test_verdicts() -> None:
    small, large = NETWORKS
    assert vectors_allowed(row_of(small, "sr1")) == 16.0
    told = verdicts([row_of(small, "scaled", added=15.0), row_of(large, "scaled", added=10.1)])
    assert [line.rsplit(" ", 1)[1] for line in told] == ["met.", "met.", "missed.", "met."]
    assert "15.0 % of processor time added, goal at most 15 %" in told[0]
    told = verdicts([row_of(small, "sr1", held=16.1), row_of(small, "first-order", held=6.1)])
    assert [line.rsplit(" ", 1)[1] for line in told] == ["missed.", "missed."]
    assert verdicts([row_of(small, "adam"), row_of(small, "scaled", ranks=2)]) == []


def test_report(tmp_path: Path) -> None:
    rows = [row_of(name, method) for name in NETWORKS for method in METHODS]
    report(tmp_path, [None, *rows])
    text = (tmp_path / "cost.md").read_text(encoding="utf-8")
    lines = {tuple(line[:3]): line for line in cells_of(text)}
    assert lines["784-128-128-10", "default (scaled)", "1"][3:] == [
        *("42 + 1", "100.0", "110.0", "99.0 [8.0, 110.0]", "9.0 [8.0, 12.0]", "6.0", "8.0")
    ]
    assert "disturbed" not in text
    report(tmp_path, [{**rows[0], "load": 7.0}])
    assert "disturbed" in (tmp_path / "cost.md").read_text(encoding="utf-8")


def test_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, asked = next(iter(NETWORKS)), list[list[str]]()

    def measured(ranks: int, line: list[str], timeout: float) -> dict[str, Row]:
        asked.append([str(ranks), *line])
        rows = {name: row_of(small, name) for name in (line[1], "adam")}
        return {
            name: {k: v for k, v in row.items() if k != "settings"} for name, row in rows.items()
        }

    monkeypatch.setattr(cost, "_measure", measured)
    options = ["cost", "--out", str(tmp_path), "--ranks", "1,2", "--networks", small]
    assert main(options) == 0
    assert asked[0] == ["2", small, "scaled", "60"]
    assert len(asked) == 6
    assert len(rows_of(tmp_path / "cost.jsonl")) == 8
    assert main(options) == 0
    assert len(asked) == 6
    assert main([*options, "--fresh", "--repetitions", "3"]) == 0
    assert asked[-1] == ["1", small, "first-order", "3"]
    assert len(rows_of(tmp_path / "cost.jsonl")) == 8
    for bad in (["--repetitions", "1"], ["--ranks", "0"], ["--networks", "7-7"]):
        assert main([*options, *bad]) == 2


def test_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.json"
    monkeypatch.setitem(NETWORKS, "tiny", TINY)
    monkeypatch.setattr("sys.argv", ["worker", "tiny", "first-order", "2", str(path)])
    assert cost_worker.main() == 0
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert rows["first-order"]["gradients"] >= 1
    assert rows["first-order"]["parameters"] == 6 * 5 + 5 + 5 * 10 + 10

"""What the method costs: the same evaluations are replayed, memory is counted, goals are judged."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from apts_mpi.comm.communicator import Comm
from benchmarks.__main__ import main
from benchmarks.cost.overhead import command as cost
from benchmarks.cost.overhead.command import (
    METHODS,
    NETWORKS,
    SOLVERS,
    Network,
    section,
    vectors_allowed,
    verdicts,
)
from benchmarks.cost.overhead.measure import Contest, measure, replay, task
from benchmarks.cost.overhead.memory import PeakVectors, bytes_held
from benchmarks.harness.measure import Job, Session
from benchmarks.harness.results import Results, Row
from benchmarks.harness.sections import to_markdown
from tests.benchmarks.support import cells_of

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


def markdown(rows: list[Row]) -> str:
    return "\n\n".join(to_markdown(section(rows, Namespace())))


def test_the_table_has_a_line_per_row() -> None:
    rows = [row_of(name, method) for name in NETWORKS for method in METHODS]
    lines = {tuple(line[:3]): line for line in cells_of(markdown(rows))}
    assert lines["784-128-128-10", "default (scaled)", "1"][3:] == [
        *("42 + 1", "100.0", "110.0", "99.0 [8.0, 110.0]", "9.0 [8.0, 12.0]", "6.0", "8.0")
    ]


@pytest.mark.parametrize(("load", "disturbed"), [(1.0, False), (7.0, True)])
def test_load_is_reported(load: float, disturbed: bool) -> None:
    row = row_of(next(iter(NETWORKS)), "scaled")
    assert ("disturbed" in markdown([{**row, "load": load}])) == disturbed


def planned(tmp_path: Path, **options: object) -> list[Job]:
    given = Namespace(
        **{"ranks": (1, 2), "networks": (SMALL_NAME,), "repetitions": None, **options}
    )
    (jobs,) = cost.plan(Session(given, Results(tmp_path / "cost.jsonl"), tmp_path))
    return list(jobs)


SMALL_NAME = next(iter(NETWORKS))


def test_a_piece_per_solver_with_adam_beside_the_default(tmp_path: Path) -> None:
    job = planned(tmp_path)[1]
    assert job.ranks == 2
    methods = [[row["method"] for row in piece.settings] for piece in job.pieces]
    assert methods == [["scaled", "adam"], ["sr1"], ["first-order"]]


@pytest.mark.parametrize(("given", "used"), [(None, 60), (3, 3)])
def test_repetitions(tmp_path: Path, given: int | None, used: int) -> None:
    (piece, *_), _ = (job.pieces for job in planned(tmp_path, repetitions=given))
    assert piece.arguments == {"network": SMALL_NAME, "solver": "scaled", "repetitions": used}


@pytest.mark.parametrize("bad", [["--repetitions", "1"], ["--ranks", "0"], ["--networks", "7-7"]])
def test_options_out_of_range_are_refused(tmp_path: Path, bad: list[str]) -> None:
    assert main(["cost", "--out", str(tmp_path), *bad]) == 2


def test_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "tiny", TINY)
    rows = task(Comm(), tmp_path, "tiny", "first-order", 2)
    assert rows["first-order"]["gradients"] >= 1
    assert rows["first-order"]["parameters"] == 6 * 5 + 5 + 5 * 10 + 10

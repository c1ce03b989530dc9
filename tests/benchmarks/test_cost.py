"""What the method costs: the same evaluations are replayed, memory is counted, goals are judged."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from apts_mpi.comm.communicator import Comm
from benchmarks.__main__ import main
from benchmarks.cost import contest as module
from benchmarks.cost import overhead as cost
from benchmarks.cost.cases import COST, GPU, STEPS, mlp
from benchmarks.cost.contest import Call, recorded
from benchmarks.cost.memory import PeakVectors, bytes_held
from benchmarks.cost.overhead import (
    METHODS,
    SOLVERS,
    section,
    task,
    vectors_allowed,
    verdicts,
)
from benchmarks.harness.measure import Job, Session
from benchmarks.harness.results import Results, Row
from benchmarks.harness.sections import to_markdown
from tests.benchmarks.support import cells_of

TINY = replace(mlp(6, (5,), 15.0, 2), steps=4)
SMALL = replace(
    mlp(100, (200, 100), 15.0, 2), steps=6
)  # beside whose vectors a message's scalars are little


def test_the_loops_make_the_same_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    contest, seen, steps = recorded(TINY, "scaled", Comm()), list[Call](), list[int]()
    monkeypatch.setattr(contest, "evaluate", lambda *call: seen.append(call))
    contest.calls = [(2, True), (0, False), (1, True), (1, True)]
    contest.bare()
    assert seen == contest.calls
    contest.bare(lambda: steps.append(1))
    assert seen == 2 * contest.calls
    assert len(steps) == 3  # one a gradient


@pytest.mark.parametrize("solver", SOLVERS[:2])
def test_an_iteration_is_written_down(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contest = recorded(TINY, solver, Comm())
    network, made = contest.own, list[bool]()
    both = (network.loss_and_gradient, network.loss)

    def spied(kind: bool) -> Any:
        def evaluate(x: torch.Tensor, y: torch.Tensor) -> float:
            made.append(kind)
            return both[0](x, y) if kind else both[1](x, y)

        return evaluate

    monkeypatch.setattr(network, "loss_and_gradient", spied(True))
    monkeypatch.setattr(network, "loss", spied(False))
    contest.iterate()
    assert [with_gradient for _, with_gradient in contest.calls] == made
    assert sum(made) >= 1
    begin = contest.own.vector.clone()
    (turn,) = contest.turns(1)
    assert all(wall > 0 for wall, _ in turn.values())
    assert list(turn) == ["own", "bare", "adam", "keep"]
    adams = torch.cat([p.flatten() for p in contest.module.parameters()])
    assert not torch.equal(adams, begin)  # Adam has moved
    contest.own.vector.zero_()
    assert adams.any()  # a network of its own


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


def test_memory_of_the_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COST, "small", SMALL)
    rows = task(Comm(), tmp_path, "small", "scaled", 2)
    assert list(rows) == ["scaled", "adam"]
    assert rows["adam"]["held"] == pytest.approx(2.0, abs=0.01)
    assert 2.0 < rows["scaled"]["held"] < 12.0
    assert rows["scaled"]["peak"] >= rows["scaled"]["held"]
    assert len(rows["scaled"]["overhead"]) == len(rows["adam"]["overhead_processor"]) == 3
    assert 0.0 < rows["scaled"]["elastic"][1] < 100.0
    steps = rows["scaled"]["local_steps"]
    assert rows["scaled"]["gradients"] >= steps


def row_of(
    network: str, method: str, ranks: int = 1, added: float = 9.0, held: float = 6.0005
) -> Row:
    return {
        "settings": cost.settings(ranks, network, method),
        **{"gradients": 42, "forwards": 1, "local_steps": 42, "memory": 5, "repetitions": 9},
        **{"seconds_bare": 0.1, "seconds": 0.11, "peak": None if method == "adam" else 8.0},
        "operations": 3.0,
        **{"overhead": [8.0, 99.0, 110.0], "overhead_processor": [8.0, added, 12.0], "held": held},
        **{"load": 1.0, "cores": 2, "threads_per_rank": 1, "commit": "c", "date": "2026-01-01"},
        **{"versions": {"torch": "2"}},
    }


def test_verdicts() -> None:
    small, large, *_ = COST
    assert vectors_allowed(row_of(small, "sr1")) == 16.0
    told = verdicts([row_of(small, "spectral", added=20.0), row_of(large, "spectral", added=15.1)])
    assert [line.rsplit(" ", 1)[1] for line in told] == ["met.", "met.", "missed.", "met."]
    assert "20.0 % of processor time added, goal at most 20 %" in told[0]
    told = verdicts([{**row_of(small, "scaled"), "elastic": [1.0, 2.1, 3.0]}])
    assert told[1].endswith("2.1 % of an iteration's time by --elastic, goal at most 2 %: missed.")
    told = verdicts([row_of(small, "sr1", held=16.1), row_of(small, "first-order", held=6.1)])
    assert [line.rsplit(" ", 1)[1] for line in told] == ["missed.", "missed."]
    assert verdicts([row_of(small, "adam"), row_of(small, "spectral", ranks=2)]) == []


def markdown(rows: list[Row]) -> str:
    return "\n\n".join(to_markdown(section(rows, Namespace())))


def test_the_table_has_a_line_per_row() -> None:
    rows = [row_of(name, method) for name in COST for method in METHODS]
    lines = {tuple(line[:3]): line for line in cells_of(markdown(rows))}
    assert lines["784-128-128-10", "default (spectral)", "1"][3:] == [
        *("42 + 1", "100.0", "110.0", "99.0 [8.0, 110.0]", "9.0 [8.0, 12.0]", "3.0", "6.0", "8.0")
    ]


@pytest.mark.parametrize(("load", "disturbed"), [(1.0, False), (7.0, True)])
def test_load_is_reported(load: float, disturbed: bool) -> None:
    row = row_of(next(iter(COST)), "scaled")
    assert ("disturbed" in markdown([{**row, "load": load}])) == disturbed


def planned(tmp_path: Path, **options: object) -> list[Job]:
    given = Namespace(
        **{"ranks": (1, 2), "networks": (SMALL_NAME,), "repetitions": None, **options}
    )
    (jobs,) = cost.plan(Session(given, Results(tmp_path / "cost.jsonl"), tmp_path))
    return list(jobs)


SMALL_NAME = next(iter(COST))


def test_a_piece_per_solver_with_adam_beside_the_default(tmp_path: Path) -> None:
    job = planned(tmp_path)[1]
    assert job.ranks == 2
    methods = [[row["method"] for row in piece.settings] for piece in job.pieces]
    assert methods == [["spectral", "adam"], ["scaled"], ["sr1"], ["first-order"]]


@pytest.mark.parametrize(("given", "used"), [(None, 60), (3, 3)])
def test_repetitions(tmp_path: Path, given: int | None, used: int) -> None:
    (piece, *_), _ = (job.pieces for job in planned(tmp_path, repetitions=given))
    assert piece.arguments == {"network": SMALL_NAME, "solver": "spectral", "repetitions": used}


@pytest.mark.parametrize("bad", [["--repetitions", "1"], ["--ranks", "0"], ["--networks", "7-7"]])
def test_options_out_of_range_are_refused(tmp_path: Path, bad: list[str]) -> None:
    assert main(["cost", "--out", str(tmp_path), *bad]) == 2


def test_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COST, "tiny", TINY)
    rows = task(Comm(), tmp_path, "tiny", "first-order", 2)
    assert rows["first-order"]["gradients"] >= 1
    assert rows["first-order"]["parameters"] == 6 * 5 + 5 + 5 * 10 + 10


def test_what_a_gpu_did_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    contest, waits, held = recorded(TINY, "scaled", Comm()), list[object](), iter((100, 130))
    contest.gpu = True
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(held))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 150)
    assert contest.peak(contest.bare) == 50
    assert waits == 2 * [contest.device]

    class Profile:
        def __init__(self, activities: object) -> None:
            self.counts = {"cudaLaunchKernel": 7, "cuLaunchKernel": 2, "cudaMemcpyAsync": 3}

        def __enter__(self) -> Profile:
            return self

        def __exit__(self, *error: object) -> None:
            self.counts["cudaStreamSynchronize"] = 1

        def key_averages(self) -> list[Namespace]:
            return [Namespace(key=key, count=count) for key, count in self.counts.items()]

    monkeypatch.setattr(module, "profile", Profile)
    assert contest.counted(contest.bare) == {"launches": 9, "copies": 3, "waits": 1}
    (turn,) = contest.turns(1)
    assert len(waits) == 3 + 2 * len(turn)  # before and after each way, so that its work is done


def test_loops_of_pytorch_alone() -> None:
    comm, case = Comm(), GPU["mlp-small"]
    contest = module.on_device(case, "bf16", 2, comm, "cpu")
    gradients = sum(with_gradient for _, with_gradient in contest.calls)
    assert (gradients, len(contest.calls)) == (2 * STEPS, 2 * STEPS + 2)
    (first, *_), found = contest.module.parameters(), list[Any]()
    for _ in range(2):
        contest.evaluate(0, True)
        found.append(first.grad)
    assert found[0] is not found[1]  # fresh ones, which do not add up
    assert torch.equal(*found)

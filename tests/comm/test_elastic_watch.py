"""A rank that stands still is taken for lost in time, and the others are left alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from apts_mpi.comm import watch as module
from apts_mpi.comm.elastic_watch import ElasticWatch, Left, Process
from tests.comm.imitated import Job


class Rank(ElasticWatch):
    """A rank of an imitated job, of two hosts."""

    def __init__(self, job: Job, rank: int, *, lose: float) -> None:
        self.job, self.number = job, rank
        facts = [f"h{each % 2} {100 + each} {job.born:.0f}" for each in range(job.size)]
        ranks = SimpleNamespace(rank=rank, size=job.size, host=f"h{rank % 2}")
        super().__init__(ranks, 60, 600, lose=lose, facts=facts)
        self.directory = job.directory

    def _end_process(self, seconds: float) -> None:
        self.job.ended.append(self.number)

    def _end_job(self) -> None:
        self.job.aborted.append(self.number)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the processes that were killed."""
    found: list[int] = []
    monkeypatch.setattr(Process, "end", lambda self: found.append(self.pid))
    return found


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, killed: list[int]) -> Job:
    clock = SimpleNamespace(now=1e9, time_ns=lambda: 0)
    clock.time = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    made = Job(clock, tmp_path, 4)
    made.ranks = [Rank(made, each, lose=100) for each in range(4)]  # type: ignore[misc]
    return made


def test_one_that_does_not_come_is_killed_on_its_host(job: Job, killed: list[int]) -> None:
    job.enter("allreduce", 0, 1, 2)
    job.live(98, without=(3,))
    assert killed == []
    job.live(30, without=(3,))
    assert set(killed) == {103}
    assert [job.ended, job.aborted] == [[], []]


def test_the_line_says_when_and_then_that(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    job.enter("allreduce", 0, 1, 2)
    job.live(130, without=(3,))
    first, second = capfd.readouterr().err.splitlines()
    assert "rank 3 on h1" in first
    assert first.endswith("; taken for lost after 100 s (--rank-timeout)")
    assert second.endswith("; taken for lost (--rank-timeout)")


def test_ranks_that_recover_are_not_missed(job: Job, killed: list[int]) -> None:
    job.enter("allreduce", 0)
    for rank in (1, 2, 3):
        job.ranks[rank].recover()  # type: ignore[attr-defined]
    job.live(130, without=(0,))  # stopped within its call
    assert set(killed) == {100}


def test_one_that_computes_on_after_a_death_is_missed(job: Job, killed: list[int]) -> None:
    for rank in (0, 1, 2):
        job.ranks[rank].recover()  # type: ignore[attr-defined]
    job.live(130)
    assert set(killed) == {103}


def test_without_its_launcher_a_rank_ends(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.live(5)
    assert job.ended == []
    monkeypatch.setattr("apts_mpi.comm.elastic_watch.os.getppid", lambda: 1)
    job.live(1)
    assert sorted(job.ended) == [0, 1, 2, 3]


def test_one_that_is_left_alone_is_watched_too() -> None:
    alone = ElasticWatch(Left(0, 1), 60, 600, lose=300, facts=["here 1 2"])
    alone.start()
    assert alone._thread is not None
    alone.stop()

"""Stalls are reported with rank, host and call, and end the run; nothing else is reported."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from apts_mpi.comm import watch as module
from tests.comm.imitated import Job, Rank

Start = Callable[..., Job]
Lines = Callable[[], list[str]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Start:
    clock = SimpleNamespace(now=1e9, time_ns=lambda: 0)
    clock.time = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)

    def begin(
        size: int, warning: float = 60, abort: float = 600, directory: Path | None = tmp_path
    ) -> Job:
        job = Job(clock, directory, size)
        job.ranks = [Rank(job, each, warning, abort) for each in range(size)]
        return job

    return begin


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Lines:
    """What has been reported since the last call."""
    return lambda: capfd.readouterr().err.splitlines()


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def waited(reported: list[str]) -> list[str]:
    return [time for line in reported for time in re.findall(r"waited (\d+) s", line)]


def test_no_file_is_written_before_half_the_time(start: Start, tmp_path: Path) -> None:
    job = start(4)
    job.enter("allreduce", 0, 1)
    job.live(29)
    assert files(tmp_path) == []


def test_one_line_says_who_is_missing(start: Start, lines: Lines) -> None:
    job = start(4)
    job.enter("allreduce", 0, 1)
    job.live(62, without=(3,))
    (line,) = lines()
    assert re.fullmatch(
        r"apts_mpi: 2 of 4 ranks have waited 6\d s at allreduce 1; not arrived: rank 2 on h2 "
        r"\(process 102, computing for 6\d s in \w+\.py:\d+ \w+\), rank 3 on h3 \(process 103, no "
        r"sign of life: stopped, killed, or its host is gone\); the run ends after 600 s "
        r"\(--stall-abort\)",
        line,
    ), line


def test_it_is_said_again_after_twice_the_time_each(start: Start, lines: Lines) -> None:
    job = start(4)
    job.enter("allreduce", 0, 1)
    job.live(590, without=(3,))
    assert waited(lines()) == ["60", "120", "240", "480"]


def test_a_file_that_is_seldom_written_is_never_too_old(start: Start, lines: Lines) -> None:
    job = start(4)
    job.enter("allreduce", 0, 1)
    job.live(590, without=(3,))
    assert all("rank 2 on h2 (process 102, computing for" in line for line in lines())


def test_a_long_stall_ends_the_run(start: Start, lines: Lines, tmp_path: Path) -> None:
    job = start(4)
    job.enter("allreduce", 0, 1)
    job.live(601, without=(3,))
    line = lines()[-1]
    assert "2 of 4 ranks have waited 600 s at allreduce 1; not arrived: rank 2 on h2" in line
    assert line.endswith(
        f"; the run is ended (--stall-abort); what ranks did is in {tmp_path}/.watch"
    )
    assert job.aborted == [0]


def test_ranks_that_the_launcher_does_not_reach_end_by_themselves(start: Start) -> None:
    job = start(4)
    job.enter("allreduce", 0, 1)
    job.live(800, without=(3,))
    assert sorted(job.ended) == [0, 1, 2]


def test_the_end_of_a_stall_is_reported(start: Start, lines: Lines) -> None:
    job = start(3)
    job.enter("broadcast", 0, 1)
    job.live(70)
    lines()
    job.enter("broadcast", 2)
    job.live(1)
    job.leave(0, 1, 2)
    assert lines() == ["apts_mpi: rank 2 on h2 arrived at broadcast 1 after 70 s"]


def test_after_a_stall_no_file_is_left(start: Start, tmp_path: Path) -> None:
    job = start(3)
    job.enter("broadcast", 0, 1)
    job.live(70)
    assert files(tmp_path)[1:] == [f".watch/rank-0000{rank}.json" for rank in range(3)]
    job.enter("broadcast", 2)
    job.live(1)
    job.leave(0, 1, 2)
    assert files(tmp_path) == []


def test_ranks_that_all_compute_are_no_stall(start: Start, lines: Lines, tmp_path: Path) -> None:
    job = start(3)
    job.live(7200)
    job.enter("allreduce", 0, 1, 2)
    job.leave(0, 1, 2)
    assert lines() == []
    assert files(tmp_path) == []


def test_a_stall_counts_from_the_last_that_arrived(start: Start, lines: Lines) -> None:
    job = start(5)
    for rank in range(4):
        job.enter("allreduce", rank)
        job.live(50)
    assert lines() == []
    job.live(15)
    (line,) = lines()
    assert "4 of 5 ranks have waited 60 s at allreduce 1; not arrived: rank 4 on h4" in line


def test_where_all_wait_nobody_is_missing_but_it_is_a_stall(start: Start, lines: Lines) -> None:
    job = start(5)
    job.enter("allreduce", 0, 1, 2, 3, 4)
    job.live(65)
    (line,) = lines()
    assert "all 5 ranks have waited 60 s at allreduce 1: the network" in line


def test_time_in_which_a_job_is_suspended_is_no_stall(start: Start, lines: Lines) -> None:
    job = start(3)
    job.enter("allreduce", 0, 1)
    job.live(58)
    job.live(36000, step=18000)
    job.live(10)  # in which the others write how they are
    assert lines() == []
    job.live(10)
    (line,) = lines()
    assert "not arrived: rank 2 on h2 (process 102, computing for" in line


def test_a_suspended_stall_does_not_end_the_run_early(start: Start, lines: Lines) -> None:
    job = start(3)
    job.enter("allreduce", 0, 1)
    job.live(550)
    lines()
    job.live(36000, step=18000)
    job.live(48)
    assert lines() == []
    assert job.ended == []
    job.live(5)
    (line,) = lines()
    assert "not arrived: rank 2 on h2 (process 102, computing for" in line
    assert job.aborted == [0]


def test_another_rank_reports_where_the_first_falls_silent(start: Start, lines: Lines) -> None:
    job = start(3)
    job.enter("allreduce", 0, 1)
    job.live(65)
    assert len(lines()) == 1
    job.live(540, without=(0,))
    reported = lines()
    assert waited(reported) == ["120", "240", "480", "600"]
    silent = r"rank 0 on h0 \(process 100, no sign of life for 60 s, then waiting at allreduce 1\)"
    assert re.search(silent, reported[0]), reported[0]
    assert job.aborted == [1]


@pytest.fixture
def left(start: Start, lines: Lines, tmp_path: Path) -> Job:
    """A job in the folder of one that was ended, and left its files."""
    job = start(3)
    job.enter("allreduce", 0, 1)
    job.live(610)
    (tmp_path / ".watch/rank-00002.json").write_text("[")
    names = {".watch/end", ".watch/rank-00000.json", ".watch/rank-00002.json"}
    assert names < set(files(tmp_path))
    lines()
    job.clock.now += 1
    return start(3)


def test_files_of_an_earlier_run_mean_nothing(left: Job, lines: Lines) -> None:
    left.enter("allreduce", 1)
    left.live(65, without=(0, 2))  # before rank 0 has removed them
    (line,) = lines()
    assert "1 of 3 ranks has waited 60 s" in line
    assert line.count("no sign of life: stopped") == 2
    assert left.ended == []


def test_files_of_an_earlier_run_are_removed(left: Job, tmp_path: Path) -> None:
    left.live(1)
    assert files(tmp_path) == []


UNKNOWN = (
    "apts_mpi: rank {0} on h{0} has waited 60 s at broadcast 1; which ranks have not arrived is "
    "not known: {1}; the run ends after 600 s (--stall-abort)"
)


def test_without_a_folder_two_ranks_report_what_they_know(start: Start, lines: Lines) -> None:
    job = start(4, directory=None)
    job.enter("broadcast", 0, 1, 2, 3)
    job.live(62)
    why = "there is no run directory yet"
    assert lines() == [UNKNOWN.format(rank, why) for rank in (0, 1)]
    job.leave(0, 1, 2, 3)
    assert lines() == ["apts_mpi: the ranks continue at broadcast 1 after 61 s"] * 2


def test_where_those_two_are_missing_the_others_end_the_run(
    start: Start, lines: Lines, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    job = start(4, directory=file)
    job.enter("broadcast", 2, 3)
    job.live(604)
    assert lines() == []
    job.enter("broadcast", 1)
    job.live(62)
    *others, one = lines()
    assert one == UNKNOWN.format(1, f"{file}/.watch: Not a directory")
    for number, line in enumerate(others, 2):
        who = f"rank {number} on h{number}"
        assert line.startswith(f"apts_mpi: {who} has waited 605 s at broadcast 1")
        assert "; the run is ended (--stall-abort)" in line
    assert job.aborted == [2, 3]


@pytest.mark.parametrize(
    ("warning", "abort", "times"),
    [
        (0, 0, []),
        (60, 0, ["60", "120", "240", "480", "960"]),
        (60, float("inf"), ["60", "120", "240", "480", "960"]),
        (0, 30, ["30"]),
    ],
)
def test_either_can_be_off(
    start: Start, lines: Lines, warning: float, abort: float, times: list[str]
) -> None:
    job = start(2, warning, abort)
    job.enter("allreduce", 0)
    job.live(1000)
    reported = lines()
    assert waited(reported) == times
    assert job.aborted == ([0] if abort == 30 else [])
    assert all(("the run waits on" in each) == (abort != 30) for each in reported)


@pytest.mark.parametrize(("warning", "abort"), [(-1, 600), (60, float("nan"))])
def test_wrong_times_are_refused(start: Start, warning: float, abort: float) -> None:
    with pytest.raises(ValueError, match="must be seconds"):
        start(2, warning, abort)


def test_a_rank_whose_launcher_is_gone_ends(
    start: Start, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(2)
    job.live(100)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    for _ in range(30):
        job.enter("allreduce", 1)  # a rank that goes on may do so
        job.leave(1)
        job.live(9)
    assert job.ended == [0]
    assert lines() == ["apts_mpi: rank 0 on h0 ends, as its launcher is gone"]

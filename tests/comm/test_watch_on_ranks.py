"""Real ranks that are late, stopped, or loop: all is reported, and no process is left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apts_mpi.comm.communicator import Comm
from tests.conftest import PYTHON, TESTS, Launch
from tests.launched import Launched, within

PROGRAMS = TESTS / "comm/watch_programs.py"
HOST = re.escape(Comm().host)


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


def test_ranks_that_do_not_come_are_reported(launch: Launch) -> None:
    run = launch(4, PROGRAMS, "late", timeout=120)  # ends once the right lines have been seen
    assert run.status == 0, run.err
    times = r"[\d.]+ s"
    for each in (
        rf"rank 0 on {HOST} has waited {times} at allreduce 1; which ranks have not arrived is not",
        rf"the ranks continue at allreduce 1 after {times}",
        rf"rank 0 on {HOST} arrived at allreduce 2 after {times}",
        # Whom the last look still waited for: one of them may have come before it.
        rf"rank [23] on {HOST}(, rank 3 on {HOST})? arrived at allreduce 3 after {times}",
    ):
        found = any(re.match(f"apts_mpi: {each}", line) for line in run.told)
        assert found, "\n".join([each, *run.told])


def test_ranks_that_never_come_end_the_run(launch: Launch, tmp_path: Path) -> None:
    run = launch(4, PROGRAMS, "faults", timeout=120)
    assert run.status == 1, run.err
    last = (
        rf"apts_mpi: . of 4 ranks ha(s|ve) waited [\d.]+ s at allreduce 1; not arrived: "
        rf".*rank 2 on {HOST}.*rank 3 on {HOST}.*; the run is ended .* did is in run/\.watch$"
    )
    assert any(re.match(last, line) for line in run.told), run.told
    assert within(60, lambda: _gone(tmp_path))


@pytest.fixture
def deserted(tmp_path: Path) -> Iterator[Callable[[signal.Signals], Path]]:
    """Start a job of a rank that waits and one that loops; send its launcher a signal."""
    jobs: list[Launched] = []

    def begin(sent: signal.Signals) -> Path:
        jobs.append(Launched(2, [PYTHON, str(PROGRAMS), "deserted"], tmp_path))
        jobs[-1].until(lambda: len([*tmp_path.glob("ready-*")]) == 2)
        jobs[-1].mpirun.send_signal(sent)
        return tmp_path

    yield begin
    for path in tmp_path.glob("process-*"):
        with contextlib.suppress(ProcessLookupError):
            if not _gone(tmp_path):
                os.kill(int(path.read_text()), signal.SIGKILL)
    for job in jobs:
        job.mpirun.kill()
        job.mpirun.wait()


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_ranks_end_where_the_launcher_does_not_end_them(
    deserted: Callable[[signal.Signals], Path], sent: signal.Signals
) -> None:
    folder = deserted(sent)
    assert within(60, lambda: _gone(folder))

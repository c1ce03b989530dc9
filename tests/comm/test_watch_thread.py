"""A thread of its own watches the calls of a real ``Comm`` that wait for other ranks."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.watch import Watch


@pytest.fixture
def watched(tmp_path: Path) -> Watch:
    """A rank's thread, whose rank waits for another; not started."""
    ranks = SimpleNamespace(rank=0, size=2, host="h0", gather_texts=lambda text: [text, "h1 7 0"])
    watch = Watch(ranks, warning=0.2, abort=0)
    watch.directory = tmp_path
    watch.enter("allreduce")
    return watch


def test_a_thread_watches(watched: Watch, capfd: pytest.CaptureFixture[str]) -> None:
    watched.start()
    reported = ""
    while not reported:  # or the test's time is over
        time.sleep(0.02)
        reported = capfd.readouterr().err
    watched.stop()
    line = r"1 of 2 ranks has waited [\d.]+ s at allreduce 1; not arrived: rank 1 on h1"
    assert re.search(line, reported), reported


def test_a_thread_leaves_nothing_when_it_is_stopped(watched: Watch, tmp_path: Path) -> None:
    watched.start()
    while not [*tmp_path.iterdir()]:
        time.sleep(0.02)
    watched.stop()
    assert [*tmp_path.iterdir()] == []
    assert not {thread.name for thread in threading.enumerate()} & {"watch", "errand"}


def test_a_single_rank_is_not_watched() -> None:
    alone = SimpleNamespace(rank=0, size=1, host="h0", gather_texts=None)
    Watch(alone, warning=0.01).start()
    assert "watch" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("allreduce", lambda comm: comm.allreduce(np.zeros(1))),
        ("broadcast", lambda comm: comm.broadcast(np.zeros(1))),
        ("read_clock", lambda comm: comm.read_clock()),
        ("relay", lambda comm: comm.relay([b"a"])),
        ("gather_texts", lambda comm: comm.gather_texts("a")),
    ],
)
def test_every_call_that_waits_is_watched(name: str, call: Callable[[Comm], object]) -> None:
    record: list[str] = []
    comm = Comm()
    comm.watch = SimpleNamespace(enter=record.append, leave=lambda: record.append("left"))
    call(comm)
    assert record == [name, "left"]

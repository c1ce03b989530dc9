"""Signals: the first asks, those of the same kind soon after are of it, none ends the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from apts_mpi.training.signals import SIGNALS, StopSignals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {each: signal.getsignal(each) for each in SIGNALS}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_asks_once_and_the_end_is_not_ended(number: signal.Signals) -> None:
    asked: list[str | None] = []
    heard = threading.Event()

    def ask() -> None:
        asked.append(signals.caught)
        heard.set()

    with StopSignals(ask) as signals:
        assert signals.caught is None
        for _ in range(3):  # as batch systems send it, by several ways
            os.kill(os.getpid(), number)
        assert heard.wait(timeout=60)
    assert asked == [number.name]
    os.kill(os.getpid(), number)  # while the process ends
    assert signal.getsignal(number) is signal.SIG_IGN


def test_without_a_signal_all_is_as_before() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopSignals(lambda: None) as signals:
        assert [signal.getsignal(each) for each in SIGNALS] != before
    assert signals.caught is None
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_another_thread_can_train_without_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with StopSignals(lambda: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=60)
    assert seen == [before]


STARTING = """
import sys
from apts_mpi.training.signals import StopSignals
with StopSignals():
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_a_signal_while_ranks_start_ends_them_with_one_line(rank: str, lines: int) -> None:
    environment = {**os.environ, "OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": "2"}
    process = subprocess.Popen(
        [sys.executable, "-c", STARTING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    _, err = process.communicate()
    assert (
        err.splitlines() == ["apts_mpi: stopped by SIGTERM while the ranks were starting"] * lines
    )

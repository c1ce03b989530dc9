"""Files are asked for no longer than they answer; the line named is the program's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from apts_mpi.comm.status_board import Errands, lines_of

HANGS = "its file system does not answer"


@pytest.fixture
def hanging() -> Iterator[tuple[Errands, threading.Event]]:
    """Errands of which one hangs until the event is set."""
    errands, answer = Errands(0.05), threading.Event()
    assert errands.do(answer.wait) == HANGS
    yield errands, answer
    answer.set()


def test_an_errand_is_done() -> None:
    assert Errands(60).do(lambda: 3) == 3


def test_an_error_of_the_file_system_becomes_its_line() -> None:
    line = Errands(60).do(lambda: Path("/nowhere/at/all").touch())
    assert line == "/nowhere/at/all: No such file or directory"


def test_nothing_is_asked_of_a_file_system_that_hangs(
    hanging: tuple[Errands, threading.Event],
) -> None:
    assert hanging[0].do(lambda: 4) == HANGS


def test_errands_are_done_again_once_it_answers(hanging: tuple[Errands, threading.Event]) -> None:
    errands, answer = hanging
    answer.set()
    while errands.do(lambda: 4) != 4:  # or the test's time is over
        pass


@pytest.fixture
def waiting() -> Iterator[tuple[int, str]]:
    """A thread that waits in the library, and the line that it called it from."""
    event = threading.Event()

    def waits_here() -> None:
        event.wait()

    thread = threading.Thread(target=waits_here)
    thread.start()
    assert thread.ident is not None
    while not lines_of(thread.ident)[1][0].startswith("threading.py:"):
        pass
    yield thread.ident, f"test_status_board.py:{waits_here.__code__.co_firstlineno + 1} waits_here"
    event.set()
    thread.join()


def test_the_line_is_the_program_s_own(waiting: tuple[int, str]) -> None:
    thread, expected = waiting
    while lines_of(thread)[0] != expected:  # it may still be on its way there
        pass


def test_the_stack_has_the_innermost_first(waiting: tuple[int, str]) -> None:
    thread, expected = waiting
    while expected not in (stack := lines_of(thread)[1]):
        pass
    assert stack[0].startswith("threading.py:")
    assert stack.index(expected) > 0

"""The progress line: how often, what is on it, and how it shares a terminal with other lines."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from apts_mpi.comm.alone import Alone
from apts_mpi.training.console import Console

Captured = pytest.CaptureFixture[str]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def row(passes: float = 1.0, **more: Any) -> dict[str, Any]:
    known = {"loss": 0.5, "gradient_evaluations": 500.0, "radius": 0.01, "passes": passes}
    return {**known, **more}


def test_lines_come_at_growing_intervals_of_at_most_a_minute(capsys: Captured) -> None:
    clock = Clock()
    console = Console(Alone(), clock)
    console.start(0.0, {})
    at = []
    for second in range(600):
        clock.now = 100.0 + second
        console.progress(row(), second / 600)
        if capsys.readouterr().err:
            at.append(second)
    gaps = [b - a for a, b in pairwise(at)]
    assert at[0] == 0
    assert gaps == sorted(gaps)
    assert (gaps[0], gaps[-1]) == (1, 60)
    console.progress(row(), 1.0, last=True)  # whatever the clock
    assert capsys.readouterr().err.startswith("100 %")


def test_a_line_says_how_far_how_fast_and_how_good(capsys: Captured) -> None:
    clock = Clock()
    console = Console(Alone(), clock)
    console.start(0.25, {})  # resumed
    clock.now += 10
    figures = {"test_loss": 1.0, "test_accuracy": 0.75, "val_loss": 1.0, "val_accuracy": 0.5}
    console.progress(row(3.25, **figures), 0.5)
    clock.now += 3590
    console.progress(row(3.5), 0.75)  # not evaluated: the last figures stand
    assert capsys.readouterr().err.splitlines() == [
        " 50 %  epoch 3.2  0:10 elapsed, 0:20 left  50 samples/s  loss 0.50000  "
        "validation accuracy 0.5000  test accuracy 0.7500  radius 1.0e-02",
        " 75 %  epoch 3.5  1:00:00 elapsed, 30:00 left  0 samples/s  loss 0.50000  "
        "validation accuracy 0.5000  test accuracy 0.7500  radius 1.0e-02",
    ]


def test_a_row_of_an_iteration_before_tells_no_speed(capsys: Captured) -> None:
    clock = Clock()
    console = Console(Alone(), clock)
    console.start(0.25, {}, row())
    clock.now += 0.001
    console.progress(row(), 0.25)
    assert capsys.readouterr().err == ""
    clock.now += 9.999
    console.progress(row(), 0.5)
    assert "0:10 elapsed, 0:20 left  50 samples/s" in capsys.readouterr().err


def test_on_a_terminal_the_line_is_rewritten_below_what_is_said(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    clock = Clock()
    console = Console(Alone(), clock)
    console.start(0.0, {})
    console.progress(row(), 0.5)
    console.progress(row(), 0.6)  # too soon
    console.say("warning: a line")
    console.stop()
    over, line = "\r\033[K", " 50 %  epoch 1.0  0:00 elapsed"[:29]
    assert capsys.readouterr().err == f"{over}{line}{over}warning: a line\n{line}\n"


def test_other_ranks_say_nothing(capsys: Captured) -> None:
    comm = Alone()
    comm.rank = 1
    console = Console(comm)
    console.start(0.0, {})
    console.progress(row(), 1.0, last=True)
    console.say("nothing")
    assert capsys.readouterr().err == ""

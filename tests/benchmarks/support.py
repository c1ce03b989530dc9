"""What the tests of the benchmarks share: commands, tables, and stand-ins for runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.jobs import MPIRUN_MISSING, RunFailed, launcher
from benchmarks.harness.results import KEPT, Row

needs_mpirun = pytest.mark.skipif(launcher() is None, reason=MPIRUN_MISSING)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cells_of(text: str) -> list[list[str]]:
    """The cells of all tables' lines."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def result(settings: Row, accuracy: float | None, messages: int = 40) -> Row:
    """A run as it is written down."""
    if accuracy is None:
        lost = {"test_accuracy": None, "test_loss": None}
        return {"settings": settings, **lost, "diverged": "not finite"}
    steps = [1, 2, 3, 4]
    curves = {
        "epoch": [float(step) for step in steps],
        "test_accuracy": [accuracy * step / 4 for step in steps],
        "messages": [messages * step / 4 for step in steps],
    }
    more = {"epochs": 4.0, "vector_allreduces": messages, "bytes_allreduced": 10**6 * messages}
    setup = {"versions": {"torch": "2"}, "cores": 2, "threads_per_rank": 1, "commit": "c"}
    told = {"command": "train", "date": "2026-01-01", "curves": curves, **more, **setup}
    reached = {"test_accuracy": accuracy, "test_loss": 1.0 - accuracy}
    return {"settings": settings, **reached, **told}


class Done:
    """Runs that are done, looked up as in ``Results``."""

    def __init__(self, score: Callable[[Row], float | None], messages: int = 40) -> None:
        self.score, self.messages, self.rows = score, messages, list[Row]()

    def make(self, wanted: list[Row]) -> None:
        self.rows += [
            result(settings, self.score(settings), self.messages)
            for settings in wanted
            if self.get(settings) is None
        ]

    def get(self, settings: Row) -> Row | None:
        return next((row for row in self.rows if row["settings"] == settings), None)


class FakeMpi:
    """Stands for ``mpirun``: writes what the program would, and says what the worker would."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []
        self.dies_at = self.fails_at = ""
        self._lock = threading.Lock()

    def __call__(
        self,
        ranks: int,
        arguments: list[str],
        *,
        timeout: float,
        heard: Callable[[str], object] = lambda line: None,
    ) -> None:
        assert timeout > 0
        path = Path(arguments[-1])
        pieces = json.loads(path.read_text(encoding="utf-8"))["pieces"]
        for number, (line,) in enumerate(piece["lines"] for piece in pieces):
            told = " ".join(line)
            with self._lock:
                self.ran.append(line)
            if self.dies_at and self.dies_at in told:
                raise RunFailed("status 1: died")
            if "--lr 9 " in told:
                heard(f"ended {number} the loss of iteration 3 is not finite: lower --lr")
            elif self.fails_at and self.fails_at in told:
                heard(f"ended {number} --lr: unknown")
            else:
                self._write(path.parent / str(number) / "run", told)
                for rank in range(ranks):
                    path.parent.joinpath(str(number), f"rank-{rank}.json").write_text("null")
                heard(f"ended {number}")

    def _write(self, folder: Path, told: str) -> None:
        folder.mkdir()
        names: dict[str, Any] = dict.fromkeys(("epochs", *KEPT), 1)
        accuracy = 0.9 if "--lr 0.01 " in told else 0.7
        summary = {**names, "test_accuracy": accuracy, "vector_allreduces": 6}
        summary |= {"outer_iterations": 3, "versions": {"torch": "2"}}
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        rows: list[Row] = [{"iteration": i, "epoch": i + 0.5, "loss": 1.0} for i in (1, 2, 3)]
        rows[2] |= {"test_accuracy": accuracy, "test_loss": 0.5}
        rows[0] |= {"test_accuracy": 0.1, "test_loss": 2.3}
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")

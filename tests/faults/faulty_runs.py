"""Runs with faults at random places, and the judge of what becomes of them.

``tests.faults.inject`` says what must hold.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apts_mpi.checkpoints.folder import FOLDER
from apts_mpi.data import load_source, write_shards
from tests.faults.jobs import GONE, damaged, finished, left_over

RANKS = 3
WARNING, ABORT = 1.5, 5.0  # seconds
LIMIT = ABORT + 120.0  # of a whole run, start-up on a busy machine included
FLAGS = (
    *("--hidden", "8", "--threads", "1", "--batch", "60", "--local-steps", "6"),
    *("--epochs", "1e6", "--evaluate-every", "6", "--device", "cpu"),
    *("--checkpoint-every", "3", "--keep", "2"),
)
ITERATIONS = 24
EVERYWHERE = (
    *("kill", "crash", "stop", "loop", "hang in C", "no memory", "exit", "exception", "late"),
    *("SIGTERM", "SIGINT", "SIGUSR1", "SIGTERM of mpirun", "SIGKILL of mpirun"),
    *("checkpoint damaged", "shards damaged", "disk full", "folder unwritable"),
)
ONLY_AT = {
    **dict.fromkeys(("other seed", "other code", "other version"), "start"),
    "NaN": "gradient",
    "parameter lost": "after an iteration",
}
ACTIONS = (*EVERYWHERE, *ONLY_AT)
# What must be told, by the program or by mpirun, where the run has ended before its end.
TOLD = {
    "stop": r"not arrived: .*rank {rank} on|rank {rank} .*waited|which ranks have not arrived",
    "loop": r"not arrived: .*rank {rank} on|which ranks have not arrived",
    "hang in C": r"not arrived: .*rank {rank} on|which ranks have not arrived",
    "no memory": r"rank {rank} on \S+\] .*MemoryError|rank {rank} on .*memory",
    "exception": r"\[rank {rank} on \S+\] ZeroDivisionError: planted",
    "other seed": r"rank {rank} on \S+ has settings unlike rank 0's|seed",
    "other code": r"rank \d on \S+ has settings unlike rank 0's: code 0123|code 0123",
    "other version": r"settings unlike rank 0's: .*torch",
    "parameter lost": r"copies of the parameters differ",
    "NaN": r"rank {rank} on \S+ is nan|rank {rank} on \S+: a loss",
}
OUTCOMES = ("ended", "stopped", "went on", "wrong")


@dataclass(frozen=True)
class Outcome:
    """One injection and what became of it.

    Attributes:
        number: with the seed it gives the same fault again. outcome: ended: before its end, with a
            line; stopped: by a signal, with a checkpoint; went on: to the right end; wrong.
        seconds: of the run that the fault was in. why: what was wrong.
    """

    number: int
    action: str
    place: str
    rank: int
    call: int
    outcome: str
    status: int
    seconds: float
    why: str = ""


class Faults:
    """Makes faulty runs in a folder and judges them.

    Args:
        folder: empty. seed: of all faults. python: runs the jobs that leave no process behind them
            that stands still; those are plain processes, which say by their environment whose
            they are.

    Attributes:
        reference: the run that nothing happens to.
        counts: how often each rank comes to each place in it.
    """

    def __init__(self, folder: Path, seed: int, python: str = sys.executable) -> None:
        launcher = shutil.which("mpirun")
        if launcher is None or sys.platform != "linux":
            raise RuntimeError("needs mpirun and Linux")
        self._mpirun, self._folder, self._seed, self._python = launcher, folder, seed, python
        self._data = folder / "shards"
        write_shards(load_source("digits"), self._data, shards=RANKS)
        self.reference = folder / "reference"
        self.counts = self._count()

    def _flags(self, run: Path, data: Path | None = None) -> list[str]:
        return [
            *(*FLAGS, "--iterations", str(ITERATIONS), "--data", str(data or self._data)),
            *("--stall-warning", str(WARNING), "--stall-abort", str(ABORT)),
            *("--out", str(run)),
        ]

    def _run(
        self, words: Sequence[str], mark: str, timeout: float, **more: str
    ) -> tuple[int | None, str, float]:
        """Exit status (None: it had to be killed), output and seconds of a job."""
        python = sys.executable if '"stop"' in more.get("PLANTED", "") else self._python
        words = [self._mpirun, "-n", str(RANKS), python, "-m", "tests.faults.victim", *words]
        return finished(words, self._folder / f"{mark}.log", timeout, FAULT_MARK=mark, **more)

    def _count(self) -> list[dict[str, int]]:
        """The run that nothing happens to; how often each rank comes to each place."""
        counts = self._folder / "counts"
        flags = self._flags(self.reference)
        status, text, _ = self._run(flags, self._mark("reference"), LIMIT, COUNTS=str(counts))
        if status != 0:
            raise RuntimeError(f"the run without a fault ends with {status}: {text}")
        return [json.loads(Path(f"{counts}-{rank}").read_text()) for rank in range(RANKS)]

    def _mark(self, name: str) -> str:
        """In the environment of all processes of a job, so that those that are left are found."""
        return f"{name}-{os.getpid()}-{id(self)}"

    def choose(self, number: int) -> dict[str, Any]:
        """The fault of that number; every action in its turn, at a random place."""
        rng = np.random.default_rng((self._seed, number))
        action = ACTIONS[number % len(ACTIONS)]
        rank = int(rng.integers(RANKS))
        place = ONLY_AT.get(action, "")
        if place == "start":
            return {"action": action, "place": place, "rank": max(rank, 1), "number": 1}
        counts = self.counts[rank]
        place = place or str(rng.choice(sorted(counts)))
        return {
            "action": action,
            "place": place,
            "rank": rank,
            "number": int(rng.integers(1, counts[place] + 1)),
        }

    def run(self, numbers: Iterable[int]) -> list[Outcome]:
        """Faulty runs of these numbers, then what is left of each goes on to its end."""
        first = []
        for number in numbers:
            fault, run = self.choose(number), self._folder / f"run-{number}"
            first.append(self._one(number, fault, run))
        runs = [run for run, _ in first if run.exists()]
        ends = self._finish(runs)
        return [self._after(run, outcome, ends.get(str(run), "")) for run, outcome in first]

    def _one(self, number: int, fault: dict[str, Any], run: Path) -> tuple[Path, Outcome]:
        data = self._folder / f"shards-{number}"  # its own, as they may be damaged
        shutil.copytree(self._data, data)
        mark = self._mark(f"run-{number}")
        words = self._flags(run, data)
        status, text, seconds = self._run(words, mark, LIMIT, PLANTED=json.dumps(fault))
        left = left_over(mark)
        shutil.rmtree(data)
        why = ""
        if status is None:
            why = f"no end within {LIMIT:.0f} s"
        elif left:
            why = f"{len(left)} processes are left {GONE:.0f} s after the end"
        elif status:
            why = self._ended(fault, status, text)
        elif not (run / "summary.json").exists():
            why = "status 0 without a summary"
        if fault["action"] != "checkpoint damaged":
            why = why or damaged(run)
        outcome = {0: "went on", 3: "stopped"}.get(status or 0, "ended")
        return run, Outcome(
            number,
            *(fault["action"], fault["place"], fault["rank"], fault["number"]),
            outcome="wrong" if why else outcome,
            status=-1 if status is None else status,
            seconds=round(seconds, 2),
            why=why and f"{why}: {text[-3000:]}",
        )

    def _ended(self, fault: dict[str, Any], status: int, text: str) -> str:
        """What is wrong with how a run that came to no end was told."""
        action = fault["action"]
        if not text.strip():
            return "nothing is told" if action != "SIGKILL of mpirun" else ""
        if status == 3 and "checkpoint" not in text:
            return "status 3 without a checkpoint"
        if status == 3 and not action.startswith("SIG"):
            return "status 3 without a signal"
        pattern = TOLD.get(action)
        if pattern and not re.search(pattern.format(rank=fault["rank"]), text):
            return f"{pattern} is not told"
        return ""

    def _finish(self, runs: Sequence[Path]) -> dict[str, str]:
        """How the runs end that go on without a fault."""
        for run in runs:
            if (run / FOLDER).is_file():
                (run / FOLDER).unlink()
        flags = [*FLAGS, "--iterations", str(ITERATIONS), "--data", str(self._data)]
        words = ["finish", *flags, "--", *map(str, runs)]
        _, text, _ = self._run(words, self._mark("finish"), LIMIT + 10 * len(runs))
        found = re.findall(r"^finished (\S+): (.*)$", text, re.MULTILINE)
        return dict(found) or {str(run): f"finishing failed: {text[-2000:]}" for run in runs}

    def _after(self, run: Path, outcome: Outcome, end: str) -> Outcome:
        """With what became of the run as it went on."""
        why = outcome.why
        if run.exists() and not why:
            if end != "done":
                why = f"it does not go on: {end}"
            elif _rows(run) != _rows(self.reference) and not _strayed(outcome):
                why = "it has other metrics than the run without a fault"
            else:
                why = damaged(run)
        if not why:
            shutil.rmtree(run, ignore_errors=True)
            return outcome
        return Outcome(**{**asdict(outcome), "outcome": "wrong", "why": why})


def _strayed(outcome: Outcome) -> bool:
    """Whether a run has taken another course that is as right: a loss was passed over and told."""
    return outcome.action == "NaN" and outcome.status == 0


def _rows(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]

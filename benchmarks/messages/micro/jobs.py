"""Runs the jobs of the benchmark of single messages, and takes up what they print."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from benchmarks.harness.hosts import Hosts
from benchmarks.harness.jobs import RunFailed, supervise, words
from benchmarks.harness.mpi_settings import environment, named
from benchmarks.harness.options import job_folder
from benchmarks.harness.progress import Progress
from benchmarks.harness.results import Results, Row, origin
from benchmarks.messages.micro.plan import MARK, Plan

Start = Callable[[str, Callable[[str], object], list[str]], None]


def measure(
    plan: Plan, results: Results, *, launch: str | None, timeout: float, fresh: bool
) -> int:
    """Run a job for every setting of MPI that is not done; returns how many failed.

    Args:
        launch: the launcher's command line; None is mpirun, in hosts of its own making if the plan
            has such.
        timeout: seconds for a size. fresh: measure again what is done.
    """
    todo = {}
    for mpi in plan.settings:
        rows = [row for row in plan.rows(mpi) if fresh or results.get(row) is None]
        if rows:
            todo[mpi] = rows
    if not todo:
        return 0
    # In a new order every time, so that no setting always has the machine's warm or busy time.
    order = random.sample(sorted(todo), len(todo))
    progress, failures = Progress(sum(len(_cases(rows)) for rows in todo.values())), 0
    with job_folder(None), _starting(plan, launch, timeout) as start:
        for mpi in order:
            job = _Job(plan, mpi, results, progress)
            arguments = ["-m", "benchmarks.messages.micro.worker", job.ask(todo[mpi])]
            try:
                start(mpi, job.hear, arguments)
                job.check(len(todo[mpi]))
            except RunFailed as error:
                failures += 1
                print(f"{mpi}: failed: {job.error or error}", file=sys.stderr)
    return failures


@contextmanager
def _starting(plan: Plan, launch: str | None, timeout: float) -> Iterator[Start]:
    if plan.made:
        link = None if plan.link == "unlimited" else plan.link
        with Hosts(plan.hosts, link=link, ranks_per_host=plan.ranks // plan.hosts) as hosts:
            yield _start(hosts.mpi_command(), timeout)
    else:
        yield _start(words(launch, plan.ranks), timeout)


def _start(command: list[str], timeout: float) -> Start:
    def start(mpi: str, heard: Callable[[str], object], arguments: list[str]) -> None:
        supervise(
            [*command, sys.executable, *arguments],
            told="micro",  # without the arguments, which are long
            env=environment(named(mpi)),
            timeout=timeout,
            heard=heard,
        )

    return start


def _cases(rows: list[Row]) -> dict[tuple[str, int], list[str]]:
    """Ways through by operation and size."""
    cases = defaultdict(list)
    for row in rows:
        cases[row["operation"], row["bytes"]].append(row["through"])
    return dict(cases)


class _Job:
    """What one job is asked, and what it has answered."""

    def __init__(self, plan: Plan, mpi: str, results: Results, progress: Progress) -> None:
        self._plan, self._mpi, self._results, self._progress = plan, mpi, results, progress
        self._left: dict[tuple[str, int], list[str]] = {}
        self._told: list[str] = []
        # Of the machine that starts the job; what else runs there is in the figures.
        self._shared: Row = {"load": round(os.getloadavg()[0], 1)}
        self.error = ""

    def ask(self, rows: list[Row]) -> str:
        """The worker's argument."""
        self._left = _cases(rows)
        limits = {
            name: getattr(self._plan, name) for name in ("seconds", "least", "most", "warmup")
        }
        todo = [(operation, ways, size) for (operation, size), ways in self._left.items()]
        return json.dumps({"ranks": self._plan.ranks, "limits": limits, "todo": todo})

    def hear(self, line: str) -> bool:
        """A line of the job; True if it is a result."""
        _, found, text = line.partition(MARK)
        if not found:
            return False
        try:
            values = json.loads(text)
        except ValueError:
            return False  # cut in two by another rank's line; missed in the end
        if "error" in values:
            self.error = values["error"]
        elif "versions" in values:
            self._shared |= {**values["setup"], "versions": values["versions"], **origin()}
            self._shared["oversubscribed"] = self._plan.ranks > self._shared["cores"] * (
                1 if self._plan.link != "none" else self._plan.hosts
            )
            if values["on"] != self._plan.hosts:
                self.error = (
                    f"the ranks are on {values['on']} hosts, not {self._plan.hosts}: give as many "
                    "--ranks as the allocation has tasks, or a --launch that spreads them"
                )
        elif not self.error:
            self._add(values)
        return True

    def _add(self, values: Row) -> None:
        operation, way, size = values["operation"], values["through"], values["bytes"]
        seconds = values["seconds"]
        wanted = self._plan.row(operation, way, size, self._mpi)
        if self._results.get(wanted) is not None:
            self._results.forget([wanted])
        row = {"seconds": seconds, "iterations": len(seconds), **self._shared}
        self._results.add(wanted, row)
        self._told.append(f"{way} {1e6 * median(seconds):.1f}")
        left = self._left[operation, size]
        left.remove(way)
        if not left:
            self._progress.say(
                f"{self._mpi}: {operation} {size} bytes, us: {', '.join(self._told)}"
            )
            self._told.clear()

    def check(self, asked: int) -> None:
        """Nothing that was asked for may be missing.

        Raises:
            RunFailed: something is.
        """
        lost = sum(map(len, self._left.values()))
        if lost:
            raise RunFailed(f"{lost} of {asked} results did not come; run it again")

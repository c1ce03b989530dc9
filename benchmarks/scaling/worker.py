"""Runs of ``scaling`` in one MPI job, every rank's seconds by phase and outer iteration.

``mpirun -n N python -m benchmarks.scaling.worker FILE``; FILE is a JSON list of runs: arguments,
the outer iterations that do not count, whether every other one is made with the clock off, and a
folder, to which every rank writes ``rank-R.json``. Rank 0 says ``ended NUMBER`` after each.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from apts_mpi.__main__ import guarded
from apts_mpi.cli.main import train_settings
from apts_mpi.comm.clock import PHASES
from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import AgreedError
from apts_mpi.training.loop import REPLICA_CHECK_EVERY, Lap, Training
from apts_mpi.training.provenance import versions
from benchmarks.harness.worker import leave


def work(path: Path) -> int:
    """Make the runs of a file in turn, on every rank."""
    for number, run in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        comm = Comm()
        try:
            measured = measure(run, comm)
        except AgreedError as error:  # of all ranks together: the other runs go on
            if comm.rank == 0:
                print(f"ended {number} {error}", flush=True)
            continue
        leave(Path(run["folder"]), measured, comm)
        if comm.rank == 0:
            print(f"ended {number}", flush=True)
    return 0


class Record:
    """What is kept of the outer iterations that count; its times are this rank's."""

    def __init__(self, comm: Comm, warm_up: int, *, alternate: bool) -> None:
        self._comm, self._warm_up, self._alternate = comm, warm_up, alternate
        self.laps: list[Lap] = []
        self.walls: list[float | None] = []  # None where a check of the replicas is in it
        self.evaluations = 0.0
        self._begin = self._end = self._state()
        self._last = time.perf_counter()

    def _state(self) -> tuple[float, int, int]:
        traffic = self._comm.traffic
        return time.process_time(), traffic.bytes_allreduced, traffic.vector_allreduces

    def heard(self, row: dict[str, Any], lap: Lap, rest: Lap) -> None:
        """An outer iteration has ended, and what came after it: evaluation, checks, writing."""
        now = time.perf_counter()
        self._end = self._state()
        if row["iteration"] <= self._warm_up:
            self._begin = self._end
        else:
            # What evaluation and checks send and wait for is theirs, not the iteration's.
            between = sum(rest.values()) - rest["other"]
            self.laps.append({**lap, "evaluation": between, "other": lap["other"] + rest["other"]})
            checked = row["iteration"] % REPLICA_CHECK_EVERY == 0
            self.walls.append(None if checked else now - self._last)
            self.evaluations += row["gradient_evaluations"]
        if self._alternate:  # outside of any phase, and by a number that is the same on all ranks
            self._comm.clock.switch(row["iteration"] % 2 == 0)
        self._last = time.perf_counter()

    def values(self) -> dict[str, Any]:
        """Seconds by phase, one for every outer iteration; and what was sent meanwhile."""
        cpu, sent, messages = (
            now - before for now, before in zip(self._end, self._begin, strict=True)
        )
        return {
            "phases": {name: [lap[name] for lap in self.laps] for name in PHASES},
            "walls": self.walls,
            "cpu_seconds": cpu,
            "evaluations": self.evaluations,
            "bytes": sent,
            "messages": messages,
        }


def measure(run: dict[str, Any], comm: Comm) -> dict[str, Any]:
    """One run on this rank: its record and its set-up."""
    arguments = [*run["arguments"], "--checkpoint-every", "off"]
    training = Training(train_settings(arguments), comm)
    record = Record(comm, run["warm_up"], alternate=run["alternate"])
    training.run(record.heard)
    return {
        **record.values(),
        "dataset": training.built.info.name,
        "samples": training.built.samples,
        "parameters": training.built.network.n,
        "host": comm.host,
        "host_cores": comm.host_cores,
        "threads": training.built.placement.threads,
        "binding": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "device": training.built.placement.device.type,
        "oversubscribed": training.built.placement.oversubscribed,
        "optimizer": training.built.config.optimizer,
        "local_steps": training.built.config.local_steps,
        "versions": versions(),
    }


if __name__ == "__main__":
    sys.exit(guarded(lambda: work(Path(sys.argv[1]))))

"""A run of ``strong`` or ``weak``: every rank's seconds by phase and outer iteration."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from apts_mpi.comm.clock import PHASES
from apts_mpi.comm.communicator import Comm
from apts_mpi.training.loop import REPLICA_CHECK_EVERY, Lap
from apts_mpi.training.provenance import versions
from benchmarks.harness import worker


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


def task(
    comm: Comm, folder: Path, line: list[str], *, warm_up: int, alternate: bool
) -> dict[str, Any]:
    """One run on this rank: its record and its set-up.

    Args:
        line: of the program, without --out. warm_up: outer iterations that do not count.
        alternate: whether the clock is off in every other one.
    """
    out = ["--out", str(folder / "run"), "--checkpoint-every", "off"]
    training = worker.training([*line, *out], comm)
    record = Record(comm, warm_up, alternate=alternate)
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

"""A training run between hosts, until it has reached an accuracy.

``mpirun ... python -m benchmarks.messages.network.worker FILE``; FILE is JSON of a run: arguments,
the target, and a folder, to which every rank writes ``rank-R.json``.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from apts_mpi.__main__ import guarded
from apts_mpi.cli.main import train_settings
from apts_mpi.comm.communicator import Comm
from apts_mpi.training.loop import Lap, Training
from apts_mpi.training.provenance import versions
from benchmarks.harness.worker import leave


class Reached(Exception):
    """The target is; all ranks see the same accuracy."""


def work(path: Path) -> int:
    """Make the run of a file, on every rank."""
    run, comm = json.loads(path.read_text(encoding="utf-8")), Comm()
    leave(Path(run["folder"]), reach(run["arguments"], run["target"], comm), comm)
    return 0


def reach(arguments: list[str], target: float, comm: Comm) -> dict[str, Any]:
    """One run on this rank: its seconds, work and bytes by outer iteration, without evaluation."""
    training = Training(train_settings([*arguments, "--checkpoint-every", "off"]), comm)
    rows: list[tuple[float, float, int, int, float | None]] = []

    def heard(row: dict[str, Any], lap: Lap, rest: Lap) -> None:
        traffic = comm.traffic
        accuracy = row.get("test_accuracy")
        # Evaluation is not timed; finding the number of local steps is.
        pacing = 0.0 if rows else training.built.seconds_pacing
        spent = sum(lap.values()) + rest["other"] + pacing
        rows.append(
            (spent, row["epoch"], traffic.bytes_allreduced, traffic.vector_allreduces, accuracy)
        )
        if accuracy is not None and accuracy >= target:
            raise Reached

    with suppress(Reached):
        training.run(heard)
    names = ("iteration_seconds", "epoch", "bytes", "messages", "test_accuracy")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return {
        **columns,
        "parameters": training.built.network.n,
        "samples": training.built.samples,
        "local_steps": training.built.config.local_steps,
        "rank_batch": training.built.config.batch,
        "oversubscribed": oversubscribed(comm.size),
        "host": comm.host,
        "threads": training.built.placement.threads,
        "device": training.built.placement.device.type,
        "versions": versions(),
    }


def oversubscribed(ranks: int) -> bool:
    """Whether hosts that are all on this machine have more ranks than it has cores."""
    return ranks > len(os.sched_getaffinity(0))


if __name__ == "__main__":
    sys.exit(guarded(lambda: work(Path(sys.argv[1]))))

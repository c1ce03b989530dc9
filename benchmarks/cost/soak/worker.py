"""A long run whose ranks look at themselves now and then.

``mpirun -n N python -m benchmarks.cost.soak.worker SECONDS EVERY FOLDER``; every rank appends a
line of JSON to ``rank-R.jsonl`` there each time.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from apts_mpi.__main__ import guarded
from apts_mpi.cli.main import train_settings
from apts_mpi.comm.communicator import Comm
from apts_mpi.comm.watch import Watch
from apts_mpi.errors import AgreedError
from apts_mpi.training.loop import Lap, Training

FLAGS = (
    *("--threads", "1", "--epochs", "1e12", "--checkpoint-every", "20s"),
    *("--evaluate-every", "50"),
)


class Sampler:
    """Memory, open files, threads, wall and processor time of this process, as it trains."""

    def __init__(self, path: Path, every: float) -> None:
        self._file, self._every = path.open("a", encoding="utf-8"), every
        self._start = self._last = time.monotonic()
        self._walls: list[float] = []
        self._cpu = time.process_time()

    def heard(self, row: dict[str, Any], lap: Lap, rest: Lap) -> None:
        """An outer iteration has ended."""
        self._walls.append(sum(lap.values()))
        now = time.monotonic()
        if now - self._last < self._every:
            return
        cpu = time.process_time()
        sample = {
            "seconds": now - self._start,
            "iteration": row["iteration"],
            "resident": _resident(),
            "handles": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "iteration_seconds": sorted(self._walls)[len(self._walls) // 2],
            "iteration_cpu": (cpu - self._cpu) / len(self._walls),
        }
        self._file.write(json.dumps(sample) + "\n")
        self._file.flush()
        self._last, self._cpu = now, cpu
        self._walls.clear()


def _resident() -> int:
    """Bytes of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def work(seconds: str, every: float, folder: Path) -> int:
    """The run, on every rank."""
    comm = Comm()
    sampler = Sampler(folder / f"rank-{comm.rank}.jsonl", every)
    flags = [*FLAGS, "--max-seconds", seconds, "--out", str(folder / "run")]
    with Watch(comm) as comm.watch:
        try:
            Training(train_settings(flags), comm).run(sampler.heard)
        except AgreedError as error:
            if error.status != 3:
                raise
            return 0
    raise RuntimeError("the run has come to its end before the time")


if __name__ == "__main__":
    sys.exit(guarded(lambda: work(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))))

"""``python -m tests.faults.vanished``: hosts that vanish, and what becomes of elastic runs.

Three hosts are network namespaces of this machine (needs root), each with a rank. The link of one,
not the first, goes down amid the run; MPI's detector has to find it, and the others have to come to
the end. mpirun, on the first, then still waits for the host that is gone, and is killed.

The kernel is to give up a dead connection soon: else ranks that see the death wait for each other
in MPI's agreement (Open MPI 5.0.11), and what goes on is the part that was cut off, alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchmarks.harness import namespaces
from benchmarks.harness.hosts import Hosts, missing
from tests.conftest import ENVIRONMENT, ROOT
from tests.faults.jobs import damaged

HOSTS, ITERATIONS, LIMIT = 3, 60, 150.0
# Heartbeats between ranks; without them nobody sees a host vanish. And mpirun is not to end all.
DETECTOR = {
    "OMPI_MCA_mpi_ft_detector": "1",
    "OMPI_MCA_mpi_ft_detector_thread": "1",
    "OMPI_MCA_mpi_ft_detector_period": "1",
    "OMPI_MCA_mpi_ft_detector_timeout": "4",
    "PRTE_MCA_oob_tcp_keepalive_time": "0",
}
KERNEL = "net.ipv4.tcp_retries2=3"  # else TCP keeps a dead connection for a quarter of an hour
FLAGS = (
    *("--elastic", "--data", "digits", "--hidden", "8", "--threads", "1", "--device", "cpu"),
    *("--batch", "60", "--local-steps", "4", "--epochs", "1e6", "--iterations", str(ITERATIONS)),
    *("--evaluate-every", "3", "--checkpoint-every", "10", "--stall-abort", "60"),
)


def lose(folder: Path, victim: int, after: int) -> tuple[str, float]:
    """What is wrong with a run that loses a host after so many rows ("": nothing).

    And the seconds from then to its next row.
    """
    run, log = folder / "run", folder / "log"
    environment = {name: v for name, v in ENVIRONMENT.items() if name != "OMPI_MCA_btl"}
    with Hosts(HOSTS) as hosts, log.open("wb") as out:
        for name in hosts.names:
            namespaces.do("ip", "netns", "exec", name, "sysctl", "-qw", KERNEL)
        command = hosts.mpi_command()
        command += [word for name in DETECTOR if name[0] == "O" for word in ("-x", name)]
        command += ["--with-ft", "ulfm", sys.executable, "-m", "apts_mpi", *FLAGS]
        job = subprocess.Popen(
            [*command, "--out", str(run)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=ROOT,
            env={**os.environ, **environment, **DETECTOR},
            start_new_session=True,
        )
        try:
            deadline, down, gap = time.monotonic() + LIMIT, 0.0, 0.0
            while not (run / "summary.json").exists():
                rows = _rows(run)
                if not down and len(rows) >= after:
                    hosts.cut(victim)
                    down, seen = time.monotonic(), len(_rows(run))
                elif down and not gap and len(rows) > seen:
                    gap = time.monotonic() - down
                if job.poll() is not None or time.monotonic() > deadline:
                    said = log.read_text(errors="replace")[-3000:]
                    return f"no end (status {job.returncode}): {said}", gap
                time.sleep(0.02)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    lost = json.loads((run / "summary.json").read_text())["lost_ranks"]
    if [loss["ranks"] for loss in lost] != [[victim]]:
        return f"losses {lost}", gap
    if [row["iteration"] for row in _rows(run)] != list(range(1, ITERATIONS + 1)):
        return "rows are missing", gap
    return damaged(run), gap


def _rows(run: Path) -> list[dict[str, float]]:
    """Of the metrics, as far as they are whole."""
    try:
        lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.vanished", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=10, metavar="N")
    parser.add_argument("--host", type=int, metavar="N", help="that vanishes; default: any but 0")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    given = parser.parse_args(arguments)
    why = missing()
    if why is not None:
        parser.error(why)
    gaps, wrong = list[float](), 0
    for number in range(given.repetitions):
        rng = np.random.default_rng((given.seed, number))
        after, victim = (int(rng.integers(1, most)) for most in (ITERATIONS // 2, HOSTS))
        victim = victim if given.host is None else given.host
        folder = Path(tempfile.mkdtemp(prefix="vanished-"))
        found, gap = lose(folder, victim, after)
        print(f"{number}: host {victim} after {after} rows: {found or f'{gap:.1f} s'}", flush=True)
        gaps.append(gap)
        wrong += bool(found)
        if not found:
            shutil.rmtree(folder)
    print(
        f"{given.repetitions} hosts vanished, {wrong} wrong; from then to the next iteration "
        f"{float(np.median(gaps)):.1f} s (median), {max(gaps):.1f} s at most"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

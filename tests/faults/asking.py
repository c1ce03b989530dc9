"""The side that asks a process to read files, and outlives it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 30.0  # seconds for an input
START = 120.0  # seconds for the process to start


@dataclass(frozen=True)
class Answer:
    """What became of an input.

    Attributes:
        found: how each question ended, and its text. reached: lines of the package, by name, that
            no input of this kind has run before in that process. died: how the process did.
    """

    found: dict[str, tuple[str, str]]
    reached: frozenset[str] = frozenset()
    died: str = ""


class Reader:
    """The process that reads; a new one is started whenever one has ended.

    Args:
        subjects: names of the kinds that will come. module: the program. python: runs it.
    """

    def __init__(
        self,
        subjects: Sequence[str],
        environment: Mapping[str, str],
        module: str = "tests.faults.reader",
        python: str = sys.executable,
    ) -> None:
        self._command = [python, "-m", module, *subjects]
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[str] | None = None
        self._ready = False
        self._start()

    def ask(self, subject: str, folder: Path, limit: float = LIMIT) -> Answer:
        """Have the files of a folder read, for so many seconds at most."""
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        if not self._ready and self._line(START) != "ready\n":
            raise RuntimeError(f"{' '.join(self._command)}: does not start; {self._how_it_ended()}")
        self._ready = True
        try:
            task = json.dumps({"subject": subject, "folder": str(folder)})
            self._process.stdin.write(task + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return Answer({}, died=self._how_it_ended())
        line = self._line(limit)
        if line is None:
            self.end()
            return Answer({}, died=f"no answer within {limit:.0f} s")
        if not line:
            return Answer({}, died=self._how_it_ended())
        answer = json.loads(line)
        if answer["spent"]:
            self.end()
        found = {name: (kind, text) for name, (kind, text) in answer["found"].items()}
        return Answer(found, frozenset(answer["reached"]))

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=self._environment,
        )

    def _line(self, limit: float) -> str | None:
        """The next line of the process, empty at its end; None after so many seconds."""
        assert self._process is not None
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], limit)[0]:
            return None
        return self._process.stdout.readline()

    def _how_it_ended(self) -> str:
        process = self._process
        self.end(patience=5.0)
        return f"the process ended with status {process.returncode if process else None}"

    def end(self, patience: float = 0.0) -> None:
        """End the process; one that is ending by itself has so many seconds for that."""
        if self._process is None:
            return
        process, self._process, self._ready = self._process, None, False
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
        for stream in (process.stdin, process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except BrokenPipeError:
                pass
        process.wait(10.0)

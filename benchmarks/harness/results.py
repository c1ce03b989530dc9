"""Rows of results as JSON lines."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from apts_mpi.errors import InputError
from benchmarks.harness.jobs import ROOT

KEPT = (
    "outer_iterations",
    "accepted",
    "gradient_evaluations",
    "train_loss",
    "test_loss",
    "test_accuracy",
    "vector_allreduces",
    "scalar_allreduces",
    "bytes_allreduced",
    "parameters",
    "threads_per_rank",
    "seconds_total",
    "versions",
)


UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError)  # of ``contents``, decoded
Row = dict[str, Any]
T = TypeVar("T")
K = TypeVar("K")


def in_order(rows: Iterable[Row], **known: Iterable[object] | None) -> list[Row]:
    """Rows by some of their settings, in turn: in the order of what is known, or ascending."""
    places = {name: list(values) for name, values in known.items() if values is not None}

    def place(row: Row) -> list[Any]:
        s = row["settings"]
        return [places[name].index(s[name]) if name in places else s[name] for name in known]

    return sorted(rows, key=place)


def matching(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """The rows with these values among their settings."""
    return [row for row in rows if wanted.items() <= row["settings"].items()]


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by what they have in common, in the order in which they come."""
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def metrics(folder: Path) -> list[Row]:
    """The rows of a run by outer iteration."""
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def summary(folder: Path, names: Sequence[str]) -> Row:
    """Some figures of a run's summary."""
    found = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    return {name: found[name] for name in names}


def curve(rows: Sequence[Row], name: str) -> list[float]:
    """A column of the metrics, in five digits."""
    return [float(f"{row[name]:.5g}") for row in rows]


def finder(rows: Iterable[Row]) -> Callable[[Row], Row | None]:
    """Looks rows up by their settings."""
    found = {_key(row["settings"]): row for row in rows}
    return lambda settings: found.get(_key(settings))


def origin() -> Row:
    """When, from which commit, on how many cores a run was made."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD") if shutil.which("git") else ""
    if commit and git("status", "--porcelain", "--", "apts_mpi"):
        commit += " with changes"
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {"date": time.strftime("%Y-%m-%d"), "commit": commit or "unknown", "cores": cores}


def packed(path: Path) -> Path:
    """Where the lines of a file of results lie that were packed by ``gzip -9n``."""
    return path.with_name(f"{path.name}.gz")


def contents(path: Path) -> bytes:
    """The lines of a file of results: those that are packed beside it, then its own.

    Raises:
        OSError, EOFError, zlib.error: neither is there, or one cannot be read.
    """
    beside = packed(path)
    found = gzip.decompress(beside.read_bytes()) if beside.exists() else b""
    if found and not path.exists():
        return found
    own = path.read_bytes()
    return found + (gzip.decompress(own) if path.suffix == ".gz" else own)


class Results:
    """JSON lines, one per run, written as runs end: a run that is there is not run again.

    Threads and processes may add to one file at the same time. Lines that are packed beside it
    count too; new ones are not packed.

    Args:
        path: of the file.

    Raises:
        InputError: the file cannot be read or written, or is not of this form.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, Row] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be used for results: {error}") from None
        self.read()

    def read(self) -> None:
        """Take up what the file holds by now; of the same run twice, the later."""
        try:
            there = self.path.exists() or packed(self.path).exists()
            text = contents(self.path).decode("utf-8") if there else ""
        except UNREADABLE as error:
            raise InputError(f"{self.path}: cannot be used for results: {error}") from None
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                row = json.loads(line)
                self._rows[_key(row["settings"])] = row
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{self.path}: line {number} is not a run's result; mend it, or move the file "
                    "away"
                ) from None

    def get(self, settings: Row) -> Row | None:
        """The run of exactly these settings, if there is one."""
        return self._rows.get(_key(settings))

    def rows(self) -> list[Row]:
        """All runs."""
        return list(self._rows.values())

    def add(self, settings: Row, values: Row) -> Row:
        """Append a run, in one piece."""
        row = {"settings": settings, **values}
        with self.path.open("ab", buffering=0) as file:
            file.write((json.dumps(row) + "\n").encode())
        self._rows[_key(settings)] = row
        return row

    def forget(self, unwanted: Iterable[Row]) -> None:
        """Drop the runs of these settings; no other process may be adding."""
        for settings in unwanted:
            self._rows.pop(_key(settings), None)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        lines = "".join(json.dumps(row) + "\n" for row in self._rows.values())
        beside.write_text(lines, encoding="utf-8")
        beside.replace(self.path)
        packed(self.path).unlink(missing_ok=True)


def _key(settings: Row) -> str:
    return json.dumps(settings, sort_keys=True)


def digest(values: object) -> str:
    """8 hex digits of JSON values, for settings that results are looked up by."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]

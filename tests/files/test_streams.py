"""Standard output and error that end: nothing is lost but the words."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from apts_mpi.files.streams import Lenient
from tests.conftest import ENVIRONMENT, LIMIT, MPIRUN

TRAIN = ("--iterations", "6", "--threads", "1", "--evaluate-every", "0.01", "--hidden", "8")


def test_what_an_encoding_has_not_is_written_as_an_escape() -> None:
    raw = io.BytesIO()
    stream = Lenient(io.TextIOWrapper(raw, encoding="ascii"))
    print("noth\xe9 \udcff", file=stream)
    stream.flush()
    assert raw.getvalue() == b"noth\\xe9 \\udcff\n"


def test_a_stream_that_nobody_reads_takes_everything() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:  # whose end fails if anything is left to be written
        stream = Lenient(pipe)
        for _ in range(3):
            print("x" * 100_000, file=stream, flush=True)


def closed_after(
    arguments: tuple[str, ...],
    cwd: Path,
    *,
    both: bool,
    shell: str = "",
    launcher: Sequence[str] = (),
    python: str = sys.executable,
) -> int:
    """The status of the program, whose output is a pipe that is closed at once."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [*launcher, python, "-m", "apts_mpi", *arguments]
    if shell:
        command = ["sh", "-c", f'exec "$0" "$@" {shell}', *command]
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdout=writing,
        stderr=writing if both else subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT},
    )
    os.close(writing)
    _, err = process.communicate(timeout=LIMIT)
    assert b"Traceback" not in (err or b"")
    assert b"BrokenPipe" not in (err or b"")
    return process.returncode


@pytest.mark.parametrize("shell", ["", "<&- >&- 2>&-", ">/dev/full 2>&1"])
def test_a_training_that_nobody_reads_goes_on_to_its_end(
    shell: str, tmp_path: Path, cache: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APTS_MPI_CACHE", str(cache))
    flags = (*TRAIN, "--out", "run", "--trace", "trace.json")
    command = sys.executable if "&-" in shell else python  # which hands on its open files
    status = closed_after(flags, tmp_path, both=True, shell=shell, python=command)
    assert status == ("/dev/full" in shell), "on a full disk something is missing"
    assert (tmp_path / "run/summary.json").exists()
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 6
    assert (tmp_path / "trace.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "trace.json"]


@pytest.mark.skipif(MPIRUN is None, reason="mpirun is not installed")
def test_ranks_that_nobody_reads_go_on_to_their_end(
    tmp_path: Path,
    cache: Path,
    python: str,
    cores: Callable[[], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("APTS_MPI_CACHE", str(cache))
    how: dict[str, Any] = {"both": True, "launcher": (str(MPIRUN), "-n", "2"), "python": python}
    with cores():
        assert closed_after((*TRAIN, "--out", "run"), tmp_path, **how) == 0
    assert (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize("both", [False, True])
def test_other_commands_are_not_disturbed_either(both: bool, tmp_path: Path, python: str) -> None:
    shard = ("shard", "digits", "--out", "d", "--shards", "2")
    for arguments, status in ((("--help",), 0), (shard, 0), (("inspect", "d"), 0), (("--x",), 2)):
        assert closed_after(arguments, tmp_path, both=both, python=python) == status

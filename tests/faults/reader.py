"""A process that reads damaged files, so that whatever they do to it is seen from outside.

It takes a line of JSON for each folder, ``{"subject": ..., "folder": ...}``, and answers with one
that has, for every question, how it ended: ``["accepted", digest]``, ``["refused", line]`` or
``["wrong", what]``; and the lines of the package that were reached and had not been before.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import apts_mpi
from apts_mpi.errors import InputError

from .subject import Question, Subject

ROOM = 2**30  # bytes of address space more than at the start
MOST_HELD = 256 * 2**20  # bytes of memory more than before a question
LONGEST = 2000  # characters of a line
PACKAGE = str(Path(apts_mpi.__file__).parent) + os.sep


class Reached:
    """The lines of the package that are run while it is open."""

    def __init__(self) -> None:
        self.lines: set[str] = set()

    def __enter__(self) -> Reached:
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.lines.add(f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}")
        return self._line


def ask(question: Question, folder: Path) -> tuple[str, str]:
    """How a question ends."""
    before = _memory("VmRSS")
    _forget_peak()
    try:
        kind, text = "accepted", question(folder)
    except InputError as error:
        kind, text = "refused", str(error)
        if len(text.splitlines()) != 1 or len(text) > LONGEST or not text.isprintable():
            kind, text = "wrong", f"no clean line: {text[:LONGEST]!r}"
        elif any(isinstance(each, MemoryError) for each in _causes(error)):
            kind, text = "wrong", f"asked for too much memory: {text}"
    except BaseException as error:
        where = _innermost(error)
        kind, text = "wrong", f"{type(error).__name__} at {where}: {str(error)[:300]}"
    held = _memory("VmHWM") - before
    if held > MOST_HELD:
        kind, text = "wrong", f"took {held >> 20} MiB: {text}"
    return kind, text


def _causes(error: BaseException) -> Iterator[BaseException]:
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.__cause__ or at.__context__


def _innermost(error: BaseException) -> str:
    """The innermost line of the package that an exception went through."""
    at, where = error.__traceback__, "?"
    while at is not None:
        code = at.tb_frame.f_code
        if code.co_filename.startswith(PACKAGE) or where == "?":
            where = f"{Path(code.co_filename).name}:{at.tb_lineno} {code.co_name}"
        at = at.tb_next
    return where


def _memory(what: str) -> int:
    """``VmSize``, ``VmRSS`` or its peak ``VmHWM`` in bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    return 0


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def serve(subjects: Mapping[str, Subject]) -> None:
    """Say that it is ready, then answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    size = _memory("VmSize")
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    print("ready", file=answers, flush=True)
    told: set[str] = set()
    for line in sys.stdin:
        task = json.loads(line)
        questions, folder = subjects[task["subject"]].questions, Path(task["folder"])
        with Reached() as reached:
            found = {name: ask(question, folder) for name, question in questions.items()}
        new = {f"{task['subject']} {where}" for where in reached.lines} - told
        told |= new
        # What it has not given back is missing to the next one.
        spent = _memory("VmSize") > size + ROOM // 2
        answer = {"found": found, "reached": sorted(new), "spent": spent}
        print(json.dumps(answer), file=answers, flush=True)


def _warm_up() -> None:
    """Import what takes seconds and much memory by itself."""
    for name in ("cli.trained", "training.loop"):
        importlib.import_module(f"apts_mpi.{name}")
    importlib.import_module("apts_mpi.method.baselines")


if __name__ == "__main__":
    from .subjects import SUBJECTS

    if any(each.startswith(("checkpoint", "metrics")) for each in sys.argv[1:]):
        _warm_up()
    serve({name: SUBJECTS[name] for name in sys.argv[1:]})

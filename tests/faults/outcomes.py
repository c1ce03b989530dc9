"""What became of the inputs: counts for people, and all of them for programs."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import h5py
import numpy as np

from .asking import LIMIT
from .reader import MOST_HELD

OUTCOMES = ("refused", "harmless", "other", "wrong")


@dataclass(frozen=True)
class Input:
    """One input and what became of it.

    Attributes:
        way: it was changed last. before: ways it was changed in before that. file: that was.
        outcome: one of OUTCOMES. why: the line of the refusal, or what was wrong.
    """

    number: int
    subject: str
    way: str
    before: tuple[str, ...]
    file: str
    outcome: str
    why: str


def _rows(results: Sequence[Input], key: Callable[[Input], tuple[str, ...]]) -> list[list[str]]:
    """A row of counts for each key, and one for all."""
    keys = sorted({key(each) for each in results})
    counts = Counter((key(each), each.outcome) for each in results)
    rows = []
    for name in keys:
        some = [counts[name, outcome] for outcome in OUTCOMES]
        rows.append([*name, *map(str, (sum(some), *some))])
    whole = [sum(each.outcome == outcome for each in results) for outcome in OUTCOMES]
    nothing = [""] * (len(keys[0]) - 1 if keys else 0)
    return [*rows, ["all", *nothing, *map(str, (len(results), *whole))]]


def _padded(rows: Sequence[Sequence[str]], words: int, between: str) -> list[str]:
    """Rows with columns of one width, so many of words first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        between.join(
            cell.ljust(width) if k < words else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def table(results: Sequence[Input]) -> str:
    """Inputs by kind of file and way, and how many ended how."""
    rows = _rows(results, lambda each: (each.subject, each.way))
    return "\n".join(_padded([["file", "way", "inputs", *OUTCOMES], *rows], 2, "  "))


def _markdown_table(name: str, rows: list[list[str]]) -> str:
    head = [name, "inputs", *OUTCOMES]
    lines = _padded([head, *rows], 1, " | ")
    widths = [len(cell) for cell in lines[0].split(" | ")]
    rule = " | ".join("-" * w if k == 0 else "-" * (w - 1) + ":" for k, w in enumerate(widths))
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))


def as_markdown(results: Sequence[Input], command: str) -> str:
    """A short report."""
    further = sum(bool(each.before) for each in results)
    return f"""# Damaged files

    {command}

Good files of every kind that the program reads, each changed in one of the ways below and then
read by all that reads such files, in a process with a limit on memory and time; "forged" ones are
sound as their format has it, with checksums made anew. {further} of the {len(results)} were made
from an input that had reached a line of the package that none of its kind had reached before.

- refused: by one printable line that names the file (or, where settings are changed, the flag).
- harmless: read as it was before.
- other: read as another good file, where the format has no checksums or they were made anew; where
  it has none, the data are compared with what another reader finds in the file.
- wrong: another exception, a crash, more than {LIMIT:.0f} s, more than {MOST_HELD >> 20} MiB of
  memory besides what was held, code that was run, or other data taken for the good ones.

{_markdown_table("file", _rows(results, lambda each: (each.subject,)))}

{_markdown_table("way", _rows(results, lambda each: (each.way,)))}

`fuzz.json` has them by file and way. Python {platform.python_version()}, h5py {h5py.__version__},
HDF5 {h5py.version.hdf5_version}, numpy {np.__version__}, torch {version("torch")}.
"""


def as_json(results: Sequence[Input], seed: int) -> str:
    """Counts by kind of file and way, and all that was wrong."""
    counts = Counter((each.subject, each.way, each.outcome) for each in results)
    rows = [
        {"file": file, "way": way, "outcome": outcome, "inputs": number}
        for (file, way, outcome), number in sorted(counts.items())
    ]
    wrong = [asdict(each) for each in results if each.outcome == "wrong"]
    return json.dumps(
        {"seed": seed, "inputs": len(results), "rows": rows, "wrong": wrong}, indent=1
    )

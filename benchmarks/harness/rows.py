"""Rows of results: read from any mix of files, checked, sorted by kind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apts_mpi.comm.clock import PHASES
from apts_mpi.errors import InputError
from benchmarks.harness.results import UNREADABLE, Row, contents

SCALING = ("strong", "weak")
KINDS = (
    *SCALING,
    "split",
    "micro",
    "network",
    "tuning",
    "fitted",
    "prediction",
    "projection",
    "compare",
)
_MOST_TEXT = 200  # characters of a name; longer ones break tables
_MOST_WORDS = 2000  # of a paragraph
_MOST = 1e30  # no second, byte or count is more; JSON knows numbers that no float holds


def _number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 <= value <= _MOST


def _positive(value: object) -> bool:
    return _number(value) and value > 0  # type: ignore[operator]


def _count(value: object) -> bool:
    return type(value) is int and value > 0


def _text(value: object) -> bool:
    return isinstance(value, str)


def _times(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_number, value))


def _curve(*names: str) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if not isinstance(value, dict) or not all(_times(value.get(name)) for name in names):
            return False
        return len({len(value[name]) for name in names}) == 1

    return check


def _maybe(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


Checks = dict[str, Callable[[object], bool]]

# What a kind's rows must hold: in their settings, and beside them.
_SCALING: tuple[Checks, Checks] = (
    {
        **{"method": _text, "data": _text, "hidden": _text, "ranks": _count, "batch": _count},
        **{"rank": _number, "phase": lambda value: value in PHASES},
    },
    {
        **{"run": _text, "seconds": _times, "cpu_seconds": _number, "evaluations": _positive},
        **{"samples": _positive, "bytes": _number, "messages": _number, "parameters": _count},
        **{"oversubscribed": lambda value: isinstance(value, bool), "local_steps": _maybe(_count)},
        **{"host": _text, "cores": _count},
    },
)
_TRIED: Checks = {"hidden": _text, "lr": _maybe(_positive), "batch": _maybe(_count)}
_CURVE = ("epoch", "test_accuracy", "messages")
_CHECKS: dict[str, tuple[Checks, Checks]] = {
    "strong": _SCALING,
    "weak": _SCALING,
    "split": ({"method": _text, "ranks": _count}, {"on": _times, "off": _times}),
    "micro": (
        {"operation": _text, "through": _text, "bytes": _count, "ranks": _count, "hosts": _count},
        {"seconds": lambda value: _times(value) and all(map(_positive, value))},  # type: ignore[call-overload]
    ),
    "network": (
        {"method": _text, "link": _text, "hosts": _count, **_TRIED},
        {"seconds_to_target": _maybe(_positive)},
    ),
    "tuning": ({"method": _text, **_TRIED}, {}),
    "fitted": ({}, {}),  # counted, not shown
    "prediction": (
        {"of": lambda value: isinstance(value, dict)},
        {
            **{"measured": _positive, "predicted": _positive, "predicted_alone": _maybe(_number)},
            **{"range": _maybe(_times), "slowdown": _maybe(_number)},
        },
    ),
    "projection": (
        {"method": _text, "parameters": _count, "network": _text, "ranks": _count},
        {"seconds_per_epoch": _positive, "efficiency": _number, "pays": _maybe(_positive)},
    ),
    "compare": (
        {"data": _text, "hidden": _maybe(_text), "ranks": _count, "optimizer": _text},
        {"test_accuracy": _maybe(_number)},
    ),
}
# Of runs that did not diverge.
_FINISHED: dict[str, Checks] = {
    "compare": {
        **{"vector_allreduces": _count, "bytes_allreduced": _positive, "curves": _curve(*_CURVE)},
    },
    "network": {
        **{"target": _positive, "curve": _curve("seconds", "test_accuracy"), "parameters": _count},
        **{"local_steps": _maybe(_count), "rank_batch": _maybe(_positive)},
        "iteration_seconds": _maybe(_times),
    },
}
_OTHER_NAMES = {"network-tune": "tuning"}


@dataclass(frozen=True)
class Source:
    """A file that was read: its name, rows by kind, and the start of its SHA-256."""

    name: str
    rows: dict[str, int]
    checksum: str


@dataclass
class Rows:
    """All rows of some files by kind; of two with the same settings the later."""

    by_kind: dict[str, list[Row]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    sources: list[Source] = field(default_factory=list)

    def __getitem__(self, kind: str) -> list[Row]:
        return self.by_kind[kind]

    @property
    def everything(self) -> list[Row]:
        """The rows of all kinds."""
        return [row for kind in KINDS for row in self.by_kind[kind]]


def read(paths: Sequence[Path]) -> Rows:
    """The rows of JSON-lines files.

    Raises:
        InputError: a file cannot be read, a line is no row that the report knows, or two files
            hold different results of the same settings; the line names file and line.
    """
    found = Rows()
    seen: dict[str, tuple[Row, Path, int, str]] = {}
    for path in paths:
        try:
            raw = contents(path)
            text = raw.decode("utf-8")
        except UNREADABLE as error:
            raise InputError(f"{path}: cannot be read: {error}") from None
        counts: dict[str, int] = {}
        # Not splitlines(): JSON text may hold characters that it takes for ends of lines.
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            row, kind = _row(f"{path}: line {number}", line)
            counts[kind] = counts.get(kind, 0) + 1
            key = json.dumps(row["settings"], sort_keys=True)
            other = seen.get(key)
            if other is not None and other[1] != path and other[0] != row:
                raise InputError(
                    f"{path}: line {number} and {other[1]}: line {other[2]} are different results "
                    "of the same settings; report on these files one at a time"
                )
            seen[key] = (row, path, number, kind)
        if not counts:
            raise InputError(f"{path}: holds no results")
        checksum = hashlib.sha256(raw).hexdigest()[:12]
        found.sources.append(Source(plain(path.name), counts, checksum))
    for row, _, _, kind in seen.values():
        found.by_kind[kind].append(row)
    return found


def _row(where: str, line: str) -> tuple[Row, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not JSON; was the file cut off?") from None
    if not isinstance(row, dict) or not isinstance(row.get("settings"), dict):
        raise InputError(f"{where} is not a result: it has no settings")
    row = _clean(row)
    kind = _kind(row["settings"])
    if kind is None:
        known = "strong, weak, micro, network, project, compare"
        raise InputError(f"{where} is not of a benchmark that is known; these are {known}")
    settings, values = _CHECKS[kind]
    checks = [(row["settings"], settings), (row, values)]
    if kind in _FINISHED and "diverged" not in row:
        checks.append((row, _FINISHED[kind]))
    for table, wanted in checks:
        for name, good in wanted.items():
            if not good(table.get(name)):
                fault = (
                    "is missing" if name not in table else f"= {_short(table[name])} is not valid"
                )
                raise InputError(f"{where}, of {kind}: {name} {fault}")
    return row, kind


def _kind(settings: Row) -> str | None:
    """Which kind of row these settings are of; None if of none."""
    name = settings.get("benchmark")
    if name == "project":
        name = settings.get("kind")
        return name if name in ("prediction", "projection", "fitted") else None
    if name is None and "optimizer" in settings:
        return "compare"
    name = _OTHER_NAMES.get(str(name), name)
    return name if name in (*SCALING, "split", "micro", "network", "tuning") else None


def _short(value: object) -> str:
    text = plain(json.dumps(value, ensure_ascii=True))
    return text if len(text) <= 40 else text[:37] + "..."


def _clean(value: Any, most: int = _MOST_TEXT) -> Any:
    """The same with every text fit to be shown."""
    if isinstance(value, str):
        return plain(value, most)
    if isinstance(value, list):
        return [_clean(item, most) for item in value]
    if isinstance(value, dict):
        longer = {"assumptions": _MOST_WORDS}
        return {plain(k): _clean(v, longer.get(k, _MOST_TEXT)) for k, v in value.items()}
    return value


def plain(text: str, most: int = _MOST_TEXT) -> str:
    """One printable line of bounded length: SVG and tables break on control characters."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= most else shown[: most - 3] + "..."

"""Which version of the method a result is of: committed ones are all of the present one."""

from __future__ import annotations

from collections.abc import Iterable

from apts_mpi.settings.config import TrainConfig
from apts_mpi.version import METHODS
from benchmarks.harness.results import Row

_UNTOUCHED = ("joining", "micro", "streaming")  # benchmarks whose figures no method decides
_FIRST = ("first order, 2-norm", "first order, inf-norm")
_NAMES = {"L-SR1": "sr1", **dict.fromkeys(_FIRST, "first-order")}


def solver(settings: Row) -> str | None:
    """The local solver that decides what a run with these settings does; None where none does."""
    if settings.get("benchmark") in _UNTOUCHED or settings.get("kind") is not None:
        return None  # a projection is as old as what it is made of
    arguments, flag = settings.get("arguments", ()), "--local-solver"
    if flag in arguments:
        return str(arguments[list(arguments).index(flag) + 1])
    names = (settings.get(key) for key in ("local_solver", "method", "optimizer"))
    name = str(next((each for each in names if each is not None), "apts"))
    name = _NAMES.get(name, name.removeprefix("apts-"))
    default = TrainConfig().local_solver
    return name if name in METHODS else default if name in ("apts", "auto") else None


def version(settings: Row) -> str | None:
    """Local solver and version of it, as rows of these settings have them now: "spectral 1"."""
    name = solver(settings)
    return None if name is None else f"{name} {METHODS[name]}"


def outdated(row: Row) -> bool:
    """Whether a row is of an earlier version of the method."""
    return version(row["settings"]) not in (None, row.get("method"))


def note(rows: Iterable[Row]) -> str | None:
    """A sentence on the rows of an earlier version; None where there are none."""
    old = [row for row in rows if outdated(row)]
    if not old:
        return None
    default, named = TrainConfig().local_solver, {solver(row["settings"]) for row in old}
    words = ["the default at the time" if name == default else str(name) for name in named]
    days = sorted({row.get("date", "an unknown day") for row in old})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return (
        f"Of an earlier version of the method: {len(old)} runs with the local solver "
        f"{', '.join(sorted(words))} "
        f"({when}). Their commits are in the rows."
    )

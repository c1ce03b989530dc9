"""Checkpoints whose state is another one, under a seal made anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from apts_mpi.files import sealed

from .damage import Rng
from .forged_text import strange_settings

_JSON: tuple[Any, ...] = (
    None, True, 0, 1, -1, -4, 2**31, 2**63, 10**30, 10**400, 1.5, -1e308, 1e300, 0.0,
    float("nan"), float("inf"), -float("inf"), "", "text", "two\nlines", "\x00", "\x1b[2J",
    "\ud800", "../../outside", [], [1], [None], [0.5] * 1000, ["a", "a"], {}, {"a": 1},
    {"__array__": "/arrays/0"}, {"__array__": "/"}, {"__array__": "state"}, {"__array__": 3},
    {"__array__": "/arrays/999"}, {"__array__": ".."}, [[]] * 1000, [1, -1], [10**6] * 3,
    {"ranks": 10**9, "batches": 10**9, "taken": 1}, [{"ranks": 10**9, "batches": 3, "taken": 1}],
    [{"ranks": 1, "batches": 10**9, "taken": 10**8}], [{"ranks": 1, "batches": 3, "taken": 0}] * 99,
    [{"ranks": 1437, "batches": 1, "taken": 0}] * 20_000,
)  # fmt: skip


def resealed_state(path: Path, change: Callable[[Any], bytes]) -> None:
    """Replace the text of a state by what is made of its JSON tree."""
    with h5py.File(path, "r+") as file:
        text = change(json.loads(file["state"][()].tobytes()))
        del file["state"]
        file["state"] = np.frombuffer(text, dtype=np.uint8)
    sealed.seal(path, "apts-mpi-state")


def as_text(tree: Any) -> bytes:
    return json.dumps(tree).encode(errors="surrogatepass")


def state(rng: Rng, path: Path) -> None:
    """One value of a state replaced, removed, moved or added."""

    def change(tree: Any) -> bytes:
        places: list[tuple[Any, Any]] = []
        _places(tree, places)
        holder, key = places[rng.integers(len(places))]
        chance = rng.random()
        if chance < 0.15 and isinstance(holder, dict):
            del holder[key]
        elif chance < 0.25 and isinstance(holder, dict):
            holder["new"] = holder[key]
        elif chance < 0.4 and type(holder[key]) in (int, float):
            holder[key] += int(rng.choice((-1, 1, 1000)))
        elif chance < 0.55:
            other, place = places[rng.integers(len(places))]
            holder[key] = json.loads(json.dumps(other[place]))  # a copy, as it may hold this one
        else:
            holder[key] = _JSON[rng.integers(len(_JSON))]
        return as_text(tree)

    resealed_state(path, change)


def _places(tree: Any, found: list[tuple[Any, Any]]) -> None:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        found.append((tree, key))
        if isinstance(tree[key], (dict, list)):
            _places(tree[key], found)


def state_settings(rng: Rng, path: Path) -> None:
    """Strange settings in the texts of a state that hold a run's own."""

    def change(tree: Any) -> bytes:
        common = tree["state"]
        names = [name for name in ("settings", "complete") if name in common]
        if rng.random() < 0.5:
            names = [name for name in names if rng.random() < 0.5]
        seed = int(rng.integers(2**32))
        for name in names:  # the same line in both
            common[name] = strange_settings(np.random.default_rng(seed), common[name])
        return as_text(tree)

    resealed_state(path, change)


def state_text(rng: Rng, path: Path) -> None:
    """Text that is no state."""
    texts = (
        b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000,
        b'{"version": ' + b"9" * 10_000 + b"}", b"{}" * 3, b"\x00" * 10, b'{"version": 1}',
        b'{"a":' * 900 + b"1" + b"}" * 900, b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
        b"[" * 2_000_000, b'{"a": "' + b"x" * 5_000_000 + b'"}',
    )  # fmt: skip
    text = texts[rng.integers(len(texts))]
    resealed_state(path, lambda tree: text)


def state_twice(rng: Rng, path: Path) -> None:
    """One stored array that stands for ever so many tensors, all of them large."""
    with h5py.File(path, "r+") as file:
        file["arrays/large"] = np.zeros(2**20, dtype="f4")
    many = int(rng.choice((2, 1000)))

    def change(tree: Any) -> bytes:
        places = {f"w{k}": {"__array__": "/arrays/large"} for k in range(many)}
        tree["state"]["new" if rng.random() < 0.5 else "network"] = places
        return as_text(tree)

    resealed_state(path, change)

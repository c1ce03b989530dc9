"""The short form of the fuzzing, and whether the fuzzer can fail.

Run as a program it is the process that reads badly.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apts_mpi.errors import InputError

from .damage import Rng
from .forged_archives import Attack
from .fuzz import fuzzing
from .outcomes import OUTCOMES, Input, as_json, as_markdown, table
from .reader import serve
from .subject import Subject, digest
from .subjects import SUBJECTS

DEAR = ("shards", "index", "checkpoint")  # fewer inputs, so that it is quick


def test_damaged_files_are_refused_or_right(tmp_path: Path, python: str) -> None:
    names = list(SUBJECTS)
    turns = {name: 3 if name.startswith(DEAR) else 10 for name in names}
    numbers = [n for n in range(10 * len(names)) if n // len(names) < turns[names[n % len(names)]]]
    with fuzzing(20, names, tmp_path / "failures", python=python) as fuzz:
        results = [fuzz.one(number) for number in numbers]
    wrong = [each for each in results if each.outcome == "wrong"]
    assert not wrong, f"{table(wrong)}\n{wrong}"
    assert Counter(each.subject for each in results) == turns
    counts = Counter(each.outcome for each in results)
    assert counts["refused"] > len(results) / 2
    assert counts["harmless"] > 0, "no damage was to what nobody reads"
    assert any(each.before for each in results), "nothing new was reached"


# ---- what it has found in metrics --------------------------------------------------------------


def _rows(folder: Path) -> str:
    return SUBJECTS["metrics"].questions["rows"](folder)


def test_a_pipe_for_metrics_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be read"):
        _rows(tmp_path)


def test_true_is_no_number_of_an_iteration(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"iteration": true}\n')
    with pytest.raises(InputError, match="only the first 0 of 12 rows are whole"):
        _rows(tmp_path)


def test_an_endless_row_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n')
    os.truncate(path, 2**30)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="only the first 1 of 12 rows are whole"):
            _rows(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


# ---- readers that are wrong --------------------------------------------------------------------

GOOD = b"one two three four five six seven eight nine ten" * 3


def _read(folder: Path) -> bytes:
    path = folder / "file.bin"
    if not path.is_file():
        raise InputError(f"{path}: is no file")
    with path.open("rb") as file:
        return file.read(len(GOOD) + 1)


def _takes(folder: Path) -> str:
    return digest(_read(folder))


def _hangs(folder: Path) -> str:
    if _read(folder) != GOOD:
        time.sleep(60)
    return ""


def _crashes(folder: Path) -> str:
    if _read(folder) != GOOD:
        ctypes.string_at(0)
    return ""


def _ends(folder: Path) -> str:
    if _read(folder) != GOOD:
        os._exit(0)
    return ""


def _is_large(folder: Path) -> str:
    if _read(folder) != GOOD:
        large = b"\xff" * 300 * 2**20
        raise InputError(f"{folder}: took {len(large)} bytes")
    return ""


def _asks_for_much(folder: Path) -> str:
    if _read(folder) != GOOD:
        try:
            return str(len(bytearray(2**40)))
        except MemoryError as error:
            raise InputError(f"{folder}: is damaged") from error
    return ""


def _raises(folder: Path) -> str:
    if _read(folder) != GOOD:
        raise KeyError("x")
    return ""


def _tells_lines(folder: Path) -> str:
    if _read(folder) != GOOD:
        raise InputError(f"{folder}: is\ndamaged")
    return ""


def _tells_signs(folder: Path) -> str:
    if _read(folder) != GOOD:
        raise InputError(f"{folder}: holds \x1b[2J")
    return ""


def _names_nothing(folder: Path) -> str:
    if _read(folder) != GOOD:
        raise InputError("a file is damaged")
    return ""


def _runs(folder: Path) -> str:
    try:
        return digest(pickle.loads(_read(folder)))
    except Exception as error:
        raise InputError(f"{folder}: is damaged") from error


def _attack(rng: Rng, path: Path) -> None:
    path.write_bytes(pickle.dumps(Attack(path.parent)))


def _other(folder: Path) -> str:
    return digest(_read(folder)[::-1])


WORDS: dict[str, tuple[Callable[[Path], str], str]] = {
    "takes": (_takes, "other data are taken"),
    "hangs": (_hangs, "no answer within"),
    "crashes": (_crashes, "ended with status -11"),
    "ends": (_ends, "ended with status 0"),
    "is large": (_is_large, "took 3"),
    "asks for much": (_asks_for_much, "asked for too much memory"),
    "raises": (_raises, "KeyError at"),
    "tells lines": (_tells_lines, "no clean line"),
    "tells signs": (_tells_signs, "no clean line"),
    "names nothing": (_names_nothing, "names no file"),
    "runs": (_runs, "code in the file was run"),
    "reads other data": (_other, "not what the file says"),
}


def _make(folder: Path) -> None:
    (folder / "file.bin").write_bytes(GOOD)


def _make_pickle(folder: Path) -> None:
    (folder / "file.bin").write_bytes(pickle.dumps([1, 2, 3]))


BAD = {
    name: Subject(
        name,
        _make_pickle if name == "runs" else _make,
        ("file.bin",),
        {"all": question},
        {"attack": _attack} if name == "runs" else {},
        checked=name not in ("runs", "reads other data"),
        plain=(lambda folder: digest(_read(folder))) if name == "reads other data" else None,
    )
    for name, (question, _) in WORDS.items()
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, python: str) -> list[Input]:
    """Some inputs to every bad reader."""
    failures = tmp_path_factory.mktemp("failures")
    how: dict[str, Any] = {"known": BAD, "module": "tests.faults.test_fuzz", "python": python}
    with fuzzing(1, list(BAD), failures, limit=5.0, **how) as fuzz:
        results = [fuzz.one(number) for number in range(len(BAD))]
    kept = {path.name for path in failures.iterdir()}
    assert kept == {f"1-{each.number}" for each in results if each.outcome == "wrong"}
    return results


@pytest.mark.parametrize("name", WORDS)
def test_the_fuzzer_notices(found: list[Input], name: str) -> None:
    told = [each.why for each in found if each.subject == name and each.outcome == "wrong"]
    assert any(WORDS[name][1] in why for why in told), told


def test_the_table_has_every_input(found: list[Input]) -> None:
    last = table(found).splitlines()[-1].split()
    counts = [sum(each.outcome == outcome for each in found) for outcome in OUTCOMES]
    assert last == ["all", str(len(found)), *map(str, counts)]
    assert counts[-1] == len(BAD)
    text = as_markdown(found, "a command")
    total = [line for line in text.splitlines() if line.startswith("| all ")]
    assert [line.strip("|").replace("|", " ").split() for line in total] == [last, last]
    data = json.loads(as_json(found, 1))
    assert sum(row["inputs"] for row in data["rows"]) == len(found)
    assert len(data["wrong"]) == counts[-1]


if __name__ == "__main__":
    serve(BAD)

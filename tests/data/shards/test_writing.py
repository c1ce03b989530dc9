"""Writing shards: options, replacing, interruptions, races."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

from apts_mpi.data import Source, describe, read_info, write_shards
from apts_mpi.data.shards import writing
from tests.data.helpers import refused
from tests.data.shards.toys import raw, toy


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"stratified": True}, {"dirichlet": 0.3}, {"sizes": [5, 1, 2]}]
)
def test_every_sample_is_written_once(tmp_path: Path, images: bool, options: Any) -> None:
    source = toy(images=images)
    info = write_shards(source, tmp_path / "d", shards=3, **options)
    for split, x, y in (
        ("train", source.x_train, source.y_train),
        ("test", source.x_test, source.y_test),
    ):
        found_x, found_y = (raw(tmp_path / "d", split, name) for name in "xy")
        found = [(a.tobytes(), int(b)) for a, b in zip(found_x, found_y, strict=True)]
        assert sorted(found) == sorted((a.tobytes(), int(b)) for a, b in zip(x, y, strict=True))
        assert found_x.dtype == x.dtype
    assert (info.samples, info.splits["test"].total, info.shards) == (40, 9, 3)
    assert read_info(tmp_path / "d") == info


def test_shards_check_themselves(sharded: Path) -> None:
    path = sharded / "train-00002-of-00004.h5"
    with h5py.File(path) as file:
        x, y = file["x"], file["y"]
        assert x.fletcher32
        assert y.fletcher32
        content = hashlib.sha256(x[:].tobytes() + y[:].tobytes()).hexdigest()
        assert file.attrs["content"].decode() == content
        assert file.attrs["start"] == 20
        assert list(file.attrs["classes"]) == [b"a", b"b", b"c"]


def test_same_seed_same_bytes_other_seed_other_order(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_shards(toy(), tmp_path / name, shards=2, seed=seed)
    # The index notes when it was made; its digest does not depend on that.
    a, b, c = ({p.name: p.read_bytes() for p in (tmp_path / n).glob("t*.h5")} for n in "abc")
    assert a == b
    assert len(a) == 4
    assert read_info(tmp_path / "a") == read_info(tmp_path / "b") != read_info(tmp_path / "c")
    assert a["train-00000-of-00002.h5"] != c["train-00000-of-00002.h5"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"shards": 0}, "--shards"),
        ({"shards": 41}, "40 training samples"),
        ({"shards": 2, "sizes": [1]}, "--sizes"),
        ({"shards": 2, "sizes": [1, float("nan")]}, "--sizes"),
        ({"shards": 2, "sizes": [1, 0]}, "--sizes"),
        ({"shards": 2, "dirichlet": 0.0}, "--dirichlet"),
        ({"shards": 2, "dirichlet": 1.0, "stratified": True}, "--stratified"),
        ({"shards": 2, "seed": -1}, "seed -1"),
    ],
)
def test_bad_options_write_nothing(tmp_path: Path, options: Any, word: str) -> None:
    with refused(word):
        write_shards(toy(), tmp_path / "d", **options)
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_kept_unless_overwritten(sharded: Path) -> None:
    before = describe(sharded)
    with refused(str(sharded), "--overwrite"):
        write_shards(toy(), sharded, shards=4)
    assert describe(sharded) == before
    assert write_shards(toy(), sharded, shards=4, exist_ok=True) == read_info(sharded)
    with refused(str(sharded), "--overwrite"):
        write_shards(toy(), sharded, shards=2, exist_ok=True)
    info = write_shards(toy(), sharded, shards=2, overwrite=True)
    assert read_info(sharded) == info
    assert len(list(sharded.iterdir())) == 5
    assert [p.name for p in sharded.parent.iterdir()] == ["toy"]


def test_overwrite_never_removes_what_it_did_not_make(sharded: Path) -> None:
    (sharded / "thesis.tex").write_text("years of work")
    with refused("thesis.tex"):
        write_shards(toy(), sharded, shards=2, overwrite=True)
    assert read_info(sharded).shards == 4
    assert (sharded / "thesis.tex").read_text() == "years of work"
    blocker = sharded.parent / "file"
    blocker.write_text("mine")
    with refused("file", "in the way"):
        write_shards(toy(), blocker, shards=2, overwrite=True)


@pytest.mark.parametrize("step", ["_write_all", "write_index", "_publish", "sync"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_write_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, overwrite: bool
) -> None:
    directory = tmp_path / "toy"
    if overwrite:
        write_shards(toy(), directory, shards=4)
        before = describe(directory)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_shards(toy(seed=1), directory, shards=2, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["toy"] * overwrite
    if overwrite:
        assert describe(directory) == before


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_interrupted_swap_keeps_old_or_new(
    sharded: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    rename, calls = os.rename, []

    def interrupted(a: Path, b: Path) -> None:
        calls.append(a)
        if len(calls) == call:
            raise KeyboardInterrupt
        rename(a, b)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shards(toy(seed=1), sharded, shards=2, overwrite=True)
    assert read_info(sharded).shards == 4
    assert [p.name for p in sharded.parent.iterdir()] == ["toy"]


def test_a_killed_write_leaves_no_folder(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "import apts_mpi.data.shards.writing as w\n"
        "from apts_mpi.data import load_source\n"
        "w.write_index = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "w.write_shards(load_source('digits'), sys.argv[1], shards=2)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "d")], check=False)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "d").exists()
    assert write_shards(toy(), tmp_path / "d", shards=2) == read_info(tmp_path / "d")


def test_the_loser_of_a_race_takes_the_same_data_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all = writing._write_all

    def late(winner: Source) -> Callable[..., None]:
        def write(folder: Path, *rest: Any) -> None:
            write_all(folder, *rest)
            monkeypatch.setattr(writing, "_write_all", write_all)
            write_shards(winner, tmp_path / "d", shards=2)

        return write

    monkeypatch.setattr(writing, "_write_all", late(toy()))
    info = write_shards(toy(), tmp_path / "d", shards=2)
    assert read_info(tmp_path / "d") == info
    shutil.rmtree(tmp_path / "d")
    monkeypatch.setattr(writing, "_write_all", late(toy(seed=1)))
    with refused("--overwrite"):
        write_shards(toy(), tmp_path / "d", shards=2)
    assert read_info(tmp_path / "d") != info
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_processes_racing_for_a_cache_agree(tmp_path: Path, python: str) -> None:
    program = (
        "import sys\n"
        "from apts_mpi.data import load_source, write_shards\n"
        "s = load_source('digits')\n"
        "print(write_shards(s, sys.argv[1], shards=6, exist_ok=True).digest)\n"
    )
    command = [python, "-c", program, str(tmp_path / "d")]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [racer.communicate()[0].strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert set(answers) == {read_info(tmp_path / "d").digest}
    assert [p.name for p in tmp_path.iterdir()] == ["d"]

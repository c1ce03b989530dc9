"""What checkpoints promise, on every rank: ``python programs.py checkpoint.NAME...``.

One MPI job does many runs, as ranks start slowly. Runs are on the digits.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import torch

from apts_mpi.checkpoints.folder import find, listed, newest, rank_file
from apts_mpi.comm.communicator import CHECKPOINT, Comm
from apts_mpi.errors import AgreedError
from tests.training.digit_runs import begin, go_on, rows

SHORT = ("--local-steps", "5")


def checkpoints_are_kept() -> None:
    """The last few, at the wanted iterations, none half; a damaged one is passed over."""
    comm = Comm()
    training = begin("kept", *SHORT, "--iterations", "9", "--checkpoint-every", "2", "--keep", "3")
    training.run()
    folder = Path("kept/checkpoint")
    assert [path.name for path in listed(folder)] == ["00000009", "00000008", "00000006"]
    assert len(list(folder.iterdir())) == 3
    names = sorted(path.name for path in listed(folder)[0].iterdir())
    assert names == ["common.h5", *map(rank_file, range(comm.size))]
    damage = [folder / "00000009" / rank_file(1), folder / "00000008" / "common.h5"]
    if comm.rank == 0:
        for path in damage:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    comm.agree(None)
    told: list[str] = []
    assert newest(Path("kept"), comm, told.append).iteration == 6
    assert [line.split(":")[1].strip() for line in told] == list(map(str, damage))
    again = go_on("kept", iterations=9)
    again.run()
    assert torch.equal(again.built.network.vector, training.built.network.vector)
    # Those that were damaged are out of the way, and nothing is left of them under such a name.
    assert [path.name for path in listed(folder)] == ["00000009", "00000008", "00000006"]
    for path in listed(folder):
        assert newest(path, comm, told.append).iteration == int(path.name)
    aside = sorted(path.name for path in folder.iterdir() if "set-aside" in path.name)
    assert aside == ["00000008.set-aside", "00000009.set-aside"]


def nothing_to_go_on_from() -> None:
    """Clear lines where there is no checkpoint, none that is whole, or another run's."""
    comm = Comm()
    for path, said in (("nowhere", "has no checkpoint"), ("hollow", "is missing")):
        if comm.rank == 0 and path == "hollow":
            (Path(path) / "checkpoint/00000003").mkdir(parents=True)
        comm.agree(None)
        try:
            go_on(path)
        except AgreedError as error:
            assert said in str(error), error
            assert path in str(error), error
        else:
            raise AssertionError("no error was raised")
    for given, said in (
        ({"seed": 4, "hidden": (9,)}, "seed = 4, not 0; hidden = (9,), not (8,)"),
        ({"data": "digits-other"}, "digits-other"),
        ({"optimizer": "sgd"}, "optimizer = 'sgd', not 'apts'"),
    ):
        try:
            go_on("kept", **given)
        except AgreedError as error:
            assert said in str(error), error
        else:
            raise AssertionError(f"{given} was not refused")


def a_full_disk_stops_nothing() -> None:
    """Where a checkpoint cannot be written the run goes on, and the last one stays as it was."""
    comm = Comm()
    training = begin("full", *SHORT, "--iterations", "6", "--checkpoint-every", "2")
    told: list[str] = []
    training.built.console.say = told.append  # type: ignore[assignment,method-assign]
    folder = Path("full/checkpoint")

    def heard(row: dict[str, Any], lap: object, rest: object) -> None:
        if comm.rank == 0 and row["iteration"] == 2:  # as on a disk that is full
            (folder / ".00000004.partial").touch()
        if comm.rank == 0 and row["iteration"] == 4:
            (folder / ".00000004.partial").unlink(missing_ok=True)

    summary = training.run(heard)
    assert summary["outer_iterations"] == 6
    lines = [line for line in told if "no checkpoint could be written" in line]
    assert len(lines) == 1, told
    assert "the last one is full/checkpoint/00000002" in lines[0]
    assert [int(path.name) for path in find(Path("full"))] == [6, 2]


def a_disk_that_fills_up() -> None:
    """``disk`` is a file system of its own: checkpoints that find no room are told."""
    comm = Comm()
    training = begin("disk/run", *SHORT, "--iterations", "9", "--checkpoint-every", "2")
    told: list[str] = []
    training.built.console.say = told.append  # type: ignore[assignment,method-assign]

    def heard(row: dict[str, Any], lap: object, rest: object) -> None:
        if comm.rank == 0 and row["iteration"] == 3:
            with contextlib.suppress(OSError), Path("disk/filler").open("wb", buffering=0) as file:
                while file.write(b"x" * 512):
                    pass
        if row["iteration"] == 5:
            assert newest(Path("disk/run"), comm, told.append).iteration == 2
        if comm.rank == 0 and row["iteration"] == 6:
            Path("disk/filler").unlink()

    summary = training.run(heard)
    assert summary["outer_iterations"] == len(rows("disk/run")) == 9
    if comm.rank == 0:
        failed = [line for line in told if "No space left on device (rank" in line]
        assert failed, told
        assert all("the last one is disk/run/checkpoint/00000002" in line for line in failed)
    assert [int(path.name) for path in find(Path("disk/run"))] == [9, 8]
    assert not [path.name for path in Path("disk/run/checkpoint").iterdir() if path.name[0] == "."]


def wishes_of_the_clock() -> None:
    """Seconds between checkpoints, and ``--max-seconds``, by rank 0's clock, on all ranks."""
    training = begin(
        "limited", *SHORT, "--max-seconds", "1.2", "--checkpoint-every", "1s", "--keep", "99"
    )
    try:
        training.run()
    except AgreedError as error:
        assert error.status == 3
        assert "stopped by --max-seconds 1.2 after iteration" in str(error)
    else:
        raise AssertionError("the run has not stopped")
    done = [int(path.name) for path in find(Path("limited"))]
    assert 1 <= len(done) <= 2
    assert done[0] == len(rows("limited"))


def one_wish_is_enough() -> None:
    """A checkpoint that one rank wishes is written by all, after that iteration."""
    training = begin(
        "wished", *SHORT, "--iterations", "5", "--checkpoint-every", "3600s", "--keep", "9"
    )
    comm = training.comm

    def heard(row: dict[str, Any], lap: object, rest: object) -> None:
        if row["iteration"] == 2 and comm.rank == comm.size - 1:
            comm.wish(CHECKPOINT)

    training.run(heard)
    assert [int(path.name) for path in find(Path("wished"))] == [5, 3]


def copies_that_differ_make_no_checkpoint() -> None:
    """A parameter that a rank has lost is noticed before it is written."""
    training = begin("differ", *SHORT, "--iterations", "6", "--checkpoint-every", "2")

    def heard(row: dict[str, Any], lap: object, rest: object) -> None:
        if row["iteration"] == 3 and training.comm.rank == 1:
            training.built.network.vector[5] += 1e-3

    try:
        training.run(heard)
    except AgreedError as error:
        assert "copies of the parameters differ" in str(error)
        assert error.status == 1
    else:
        raise AssertionError("no error was raised")
    assert [int(path.name) for path in find(Path("differ"))] == [2]


def a_second_run_in_the_same_folder() -> None:
    """The first one notices and ends, and writes nothing over what the second does."""
    comm = Comm()
    training = begin("twice", *SHORT, "--iterations", "9", "--checkpoint-every", "2")

    def heard(row: dict[str, Any], lap: object, rest: object) -> None:
        if row["iteration"] == 3:
            other = go_on("twice", iterations=4)
            other.run()
            shutil.copy("twice/metrics.jsonl", f"after-{comm.rank}")

    try:
        training.run(heard)
    except AgreedError as error:
        assert "another run has begun here" in str(error)
        assert error.status == 1
    else:
        raise AssertionError("no error was raised")
    assert Path("twice/metrics.jsonl").read_bytes() == Path("after-0").read_bytes()
    assert [int(path.name) for path in find(Path("twice"))] == [4, 2]

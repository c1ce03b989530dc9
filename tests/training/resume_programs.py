"""What the tests of resuming run on every rank: ``mpirun -n N python resume_programs.py NAME...``.

One MPI job does many runs, as ranks start slowly. Runs are on the digits.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apts_mpi.__main__ import guarded
from apts_mpi.checkpoints.folder import find, listed, newest, rank_file
from apts_mpi.cli.main import train_settings
from apts_mpi.comm.communicator import CHECKPOINT, STOP, Comm
from apts_mpi.errors import AgreedError
from apts_mpi.training import resuming
from apts_mpi.training.loop import Training

SMALL = ["--hidden", "8", "--threads", "1", "--epochs", "1e6", "--evaluate-every", "2"]
WAYS = {
    "scaled": ["--batch", "60", "--local-steps", "7"],
    "sr1": ["--local-solver", "sr1", "--batch", "100"],
    "whole": ["--local-solver", "sr1"],
    "halves": ["--local-solver", "sr1", "--batch", "400"],  # on three ranks; on four all of a part
    "first-order": ["--local-solver", "first-order", "--norm", "inf", "--window", "3"],
    "adam": ["--optimizer", "adam"],
    "sgd": ["--optimizer", "sgd", "--lr", "0.05"],
    "local-sgd": ["--optimizer", "local-sgd"],
    "diloco": ["--optimizer", "diloco"],
}
ITERATIONS, STOPPED = 6, 3


def begin(out: str, *flags: str) -> Training:
    return Training(train_settings([*SMALL, *flags, "--out", out]), Comm())


def go_on(run: str | Path, **given: Any) -> Training:
    comm = Comm()
    config, found = resuming.settings({"resume": str(run), **given}, comm, lambda line: None)
    return Training(config, comm, resumed=found)


def stopped(training: Training, iteration: int) -> str:
    """Run until a rank wishes to stop in that iteration; the line all ranks raise."""

    def heard(row: dict[str, Any], lap: object, rest: object) -> None:
        if row["iteration"] == iteration - 1 and training.comm.rank == training.comm.size - 1:
            training.comm.wish(STOP)

    try:
        training.run(heard)
    except AgreedError as error:
        assert error.status == 3, error
        return str(error)
    raise AssertionError("the run has not stopped")


def rows(run: str) -> list[dict[str, Any]]:
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if not k.startswith("seconds")} for x in lines]


def same_results(one: dict[str, Any], two: dict[str, Any]) -> None:
    for name, value in one.items():
        if name in ("scalar_allreduces", "bytes_allreduced"):  # to start twice has its own
            assert value < two[name] < value + 3000, (name, value, two[name])
        elif not name.startswith("seconds"):
            assert two[name] == value, (name, value, two[name])
    assert two["seconds_total"] > 0


def as_if_never_stopped() -> None:
    """With every optimizer: parameters, metrics, counts of messages, bit for bit."""
    for name, flags in WAYS.items():
        whole = begin(f"{name}-whole", *flags, "--iterations", str(ITERATIONS))
        summary = whole.run()
        part = begin(f"{name}-part", *flags, "--iterations", str(ITERATIONS))
        line = stopped(part, STOPPED)
        assert f"after iteration {STOPPED}, checkpoint" in line, line
        torch.rand(7)  # what else uses random numbers does not matter
        again = go_on(f"{name}-part")
        assert again.progress.iterations == STOPPED
        same_results(summary, again.run())
        assert torch.equal(whole.built.network.vector, again.built.network.vector), name
        assert rows(f"{name}-part") == rows(f"{name}-whole"), name


def leave_for_others() -> None:
    """Runs that are stopped in the middle of a pass, for jobs of other sizes."""
    for name in ("scaled", "sr1", "halves", "adam", "local-sgd", "diloco"):
        part = begin(f"{name}-left", *WAYS[name], "--iterations", "60")
        stopped(part, STOPPED)
        np.save(f"{name}-vector-{part.comm.rank}.npy", part.built.network.vector.numpy())
        np.save(f"{name}-radius.npy", getattr(part.built.optimizer, "radius", 0.0))


def go_on_elsewhere() -> None:
    """From the same iterate, radius and place on another number of ranks; and it trains on."""
    for name in ("scaled", "sr1", "halves", "adam", "local-sgd", "diloco"):
        comm = Comm()
        out = f"{name}-on-{comm.size}"
        before = rows(f"{name}-left")
        training = go_on(f"{name}-left", out=out, iterations=8)
        assert training.progress.iterations == STOPPED
        assert np.array_equal(
            training.built.network.vector.numpy(), np.load(f"{name}-vector-0.npy")
        )
        radius = getattr(training.built.optimizer, "radius", 0.0)
        assert radius == np.load(f"{name}-radius.npy")
        legs = training.built.subdomains[0].batches.place(comm.size).legs
        assert [leg.ranks for leg in legs][:1] == [3] or not legs
        summary = training.run()
        after = rows(out)
        assert after[:STOPPED] == before
        assert len(after) == summary["outer_iterations"] == 8
        assert summary["train_loss"] < before[0]["loss"]
        # What goes on from there is a run like any other: on as many ranks bit for bit.
        if name == "scaled":
            again = go_on(out, iterations=10)
            twice = go_on(out, iterations=10, out=f"{out}-twice")
            again.run()
            twice.run()
            assert torch.equal(again.built.network.vector, twice.built.network.vector)


def the_rest_of_a_pass() -> None:
    """It is drawn first and alone, also where minibatches are all of a part from then on."""
    training = go_on("halves-left", out="rest", iterations=STOPPED + 3)
    drawn = [
        training.comm.sum_scalars([float(training.built.subdomains[0].draw()[1])])[0]
        for _ in range(3)
    ]
    assert drawn == [1437 - 3 * 240, 1437, 1437], drawn
    twice = go_on("halves-left", out="rest-1", iterations=STOPPED + 1)
    twice.run()
    again = go_on("rest-1", iterations=STOPPED + 3)
    again.run()
    once = go_on("halves-left", out="rest-2", iterations=STOPPED + 3)
    once.run()
    assert torch.equal(once.built.network.vector, again.built.network.vector)


def checkpoints_are_kept() -> None:
    """The last few, at the wanted iterations, none half; a damaged one is passed over."""
    comm = Comm()
    training = begin("kept", "--iterations", "9", "--checkpoint-every", "2", "--keep", "3")
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
    training = begin("full", "--iterations", "6", "--checkpoint-every", "2")
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
    training = begin("disk/run", "--iterations", "9", "--checkpoint-every", "2")
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
    training = begin("limited", "--max-seconds", "1.2", "--checkpoint-every", "1s", "--keep", "99")
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
    training = begin("wished", "--iterations", "5", "--checkpoint-every", "3600s", "--keep", "9")
    comm = training.comm

    def heard(row: dict[str, Any], lap: object, rest: object) -> None:
        if row["iteration"] == 2 and comm.rank == comm.size - 1:
            comm.wish(CHECKPOINT)

    training.run(heard)
    assert [int(path.name) for path in find(Path("wished"))] == [5, 3]


def copies_that_differ_make_no_checkpoint() -> None:
    """A parameter that a rank has lost is noticed before it is written."""
    training = begin("differ", "--iterations", "6", "--checkpoint-every", "2")

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
    training = begin("twice", "--iterations", "9", "--checkpoint-every", "2")

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


def run_all() -> None:
    """The functions that the command line names, in turn."""
    for name in sys.argv[1:]:
        if Comm().rank == 0:
            print(name, flush=True)
        globals()[name]()


if __name__ == "__main__":
    sys.exit(guarded(run_all))

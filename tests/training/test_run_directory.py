"""What a run leaves behind: whole rows whatever the disk does, and nothing overwritten."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apts_mpi.checkpoints.folder import Checkpoint
from apts_mpi.cli.main import train_settings
from apts_mpi.comm.communicator import Comm
from apts_mpi.errors import AgreedError, InputError
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.defaults import completed
from apts_mpi.settings.toml import to_toml
from apts_mpi.training import run_directory
from apts_mpi.training.resuming import Resumed
from apts_mpi.training.run_directory import Rows, RunDirectory

Told = list[str]


def row(number: int) -> dict[str, Any]:
    return {"iteration": number, "loss": 1.0 / number}


def read(path: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


@pytest.fixture
def told() -> Told:
    return []


def test_rows_that_find_no_room_come_later_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    path, write, rooms = tmp_path / "metrics.jsonl", os.write, {2: 0, 3: 7, 4: 0}
    rows = Rows(path, b"", told.append)
    rows.add(row(1))

    def full(file: int, data: bytes) -> int:
        """A disk that takes a part, or nothing."""
        room = rooms[number]
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:room])

    monkeypatch.setattr(run_directory.os, "write", full)
    for number in rooms:
        rows.add(row(number))
        assert read(path) == [1]  # never a part of a row
    assert len(told) == 1
    assert "its rows are kept and tried again" in told[0]
    monkeypatch.undo()
    rows.add(row(5))
    assert read(path) == [1, 2, 3, 4, 5]
    rows.close()


def test_rows_that_never_find_room_are_told_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    rows = Rows(tmp_path / "metrics.jsonl", b"", told.append)

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_directory.os, "write", full)
    rows.add(row(1))
    with pytest.raises(OSError, match="No space left"):
        rows.close()


Make = Callable[..., RunDirectory]


@pytest.fixture
def make(tmp_path: Path, told: Told) -> Make:
    def directory(**more: Any) -> RunDirectory:
        return RunDirectory(tmp_path / "run", TrainConfig(), Comm(), warn=told.append, **more)

    return directory


def test_a_run_keeps_the_rows_up_to_its_checkpoint(make: Make, tmp_path: Path, told: Told) -> None:
    run = tmp_path / "run"
    first = make()
    for number in range(1, 8):
        first.row(row(number))
    second = make(begun=run, rows=5)
    assert read(run / "metrics.jsonl") == [1, 2, 3, 4, 5]
    second.row(row(6))
    assert read(run / "metrics.jsonl") == [1, 2, 3, 4, 5, 6]
    assert told == []
    with pytest.raises(AgreedError, match="another run has begun here") as caught:
        first.sync()
    assert caught.value.status == 1
    second.sync()


@pytest.mark.parametrize("bad", [b'{"iteration": 9}\n', b"{broken\n", b'{"iteration": 3'])
def test_rows_that_are_damaged_are_told(make: Make, tmp_path: Path, told: Told, bad: bytes) -> None:
    first = make()
    first.row(row(1))
    first.row(row(2))
    with (tmp_path / "run/metrics.jsonl").open("ab") as file:
        file.write(bad)
    make(begun=tmp_path / "run", rows=3)
    assert read(tmp_path / "run/metrics.jsonl") == [1, 2]
    assert len(told) == 1
    assert "only the first 2 of 3 rows are whole and kept" in told[0]


def test_a_folder_that_has_something_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("keep me")
    with pytest.raises(AgreedError, match=r"run: is not empty; .*--resume"):
        make()
    assert os.listdir(tmp_path / "run") == ["mine.txt"]


def test_a_batch_job_sets_attempts_aside_that_came_to_no_checkpoint(
    make: Make, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "job.out").write_text("of the batch system")
    for attempt in range(3):
        make(shared=True).row(row(1 + attempt))
    names = [
        f"{name}{end}" for end in ("", ".1", ".2") for name in ("config.toml", "metrics.jsonl")
    ]
    assert sorted(os.listdir(run)) == sorted([*names, "job.out"])
    assert read(run / "metrics.jsonl.1") == [1]
    assert read(run / "metrics.jsonl") == [3]


def test_an_attempt_leaves_the_checkpoints_of_another_run(make: Make, tmp_path: Path) -> None:
    (tmp_path / "run/checkpoint/00000007").mkdir(parents=True)
    with pytest.raises(AgreedError, match="run: is not empty"):
        make(shared=True)
    assert os.listdir(tmp_path / "run") == ["checkpoint"]


# ---- settings of a run that goes on --------------------------------------------------------------


RESUMED = {"resume": "run"}


def resumed(without_effect: str = "", **settings: Any) -> Resumed:
    """A run of two ranks and 1000 samples."""
    config = TrainConfig(**settings)
    both = {"settings": config, "complete": completed(config, 2, 1000)}
    texts = {name: to_toml(each) + without_effect for name, each in both.items()}
    found = Checkpoint(Path("run/checkpoint/00000007"), "name", 7, 2, texts, {})
    return Resumed.of(found)


def test_settings_stand_unless_they_are_free() -> None:
    found = resumed(hidden=(8,), seed=3, epochs=20.0, trace="t.json", max_seconds=5.0, out="o")
    config = found.continued({"epochs": 50.0, "seed": 3, "threads": 2}, ranks=2)
    assert (config.hidden, config.seed, config.epochs, config.threads) == ((8,), 3, 50.0, 2)
    assert config.batch is not None  # as it was, whatever the defaults become
    assert (config.trace, config.max_seconds, config.out) == (None, None, None)
    with pytest.raises(InputError) as caught:
        found.continued({"hidden": (9,), "seed": 4, "epochs": 50.0}, ranks=2)
    line = str(caught.value)
    assert "hidden = (9,), not (8,); seed = 4, not 3; leave them out" in line
    assert "epochs" not in line


def test_defaults_follow_another_number_of_ranks_and_what_was_given_does_not() -> None:
    config = resumed(seed=3).continued({}, ranks=4)
    assert config.batch is None
    assert config.seed == 3
    assert resumed(batch=77).continued({}, ranks=4).batch == 77
    found = resumed()
    told = found.changes(completed(found.continued({}, ranks=1), 1, 1000), ranks=1)
    assert any(line.startswith("local_steps is ") for line in told)
    assert told[-1] == "the state of rank 1 is dropped"


def test_what_was_given_once_is_remembered_for_the_next_number_of_ranks() -> None:
    found = resumed(epochs=20.0, batch=30)
    config = found.continued({"epochs": 50.0, "threads": 2}, ranks=2)
    given = to_toml(found.ever_given(config))
    for line in ("epochs = 50.0", "threads = 2", "batch = 30"):
        assert line in given.splitlines()
    assert "local_steps" not in given


def test_the_settings_of_the_run_decide_what_has_effect() -> None:
    """Flags beside --resume say little alone; what has none in the run is refused all the same."""
    flags = ["--resume", "run", "--join", "sum", "--memory", "3", "--norm", "2"]
    given = {k: v for k, v in vars(train_settings(flags)).items() if k in ("resume", "join")}
    assert resumed(local_solver="sr1", join="sum").continued(given, ranks=2).join == "sum"
    with pytest.raises(InputError, match="join = 'sum', not 'adaptive'"):
        resumed().continued(given, ranks=2)
    config = resumed(optimizer="adam").continued({"subdomains_per_rank": 2, **RESUMED}, ranks=2)
    with pytest.raises(InputError, match=r"--subdomains-per-rank 2: .* --optimizer adam, only"):
        config.check_effect()
    with pytest.raises(InputError, match="--join sum: has no effect"):
        train_settings(flags[2:])


def test_settings_without_effect_in_a_checkpoint_are_refused() -> None:
    with pytest.raises(InputError, match=r"common\.h5: --momentum 0.0: has no effect"):
        resumed("momentum = 0.0\n", optimizer="adam").continued({}, ranks=2)

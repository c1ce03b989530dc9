"""CIFAR-10's binary files: what is read, and how damage is told."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from test_sources import DATA, refused

from apts_mpi.cli import main
from apts_mpi.comm import Comm
from apts_mpi.data import cifar, load_source, read_info, read_partition

NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six small files in the layout of the archive: 4 records each."""
    inside = tmp_path / cifar.FOLDER
    inside.mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate((*cifar.TRAIN, cifar.TEST)):
        records = rng.integers(0, 256, (4, cifar.RECORD), dtype=np.uint8)
        records[:, 0] = [number, 9 - number, 0, 9]
        records.tofile(inside / name)
    (inside / cifar.NAMES).write_text("\n".join(NAMES) + "\n\n", encoding="utf-8")
    return inside


def test_records_are_read_in_order(folder: Path) -> None:
    source = load_source("cifar10", path=folder)
    assert (source.x_train.shape, source.x_test.shape) == ((20, 3, 32, 32), (4, 3, 32, 32))
    assert source.x_train.dtype == np.uint8
    assert source.classes == tuple(NAMES)
    third = (folder / "data_batch_3.bin").read_bytes()
    record = third[cifar.RECORD : 2 * cifar.RECORD]
    assert source.y_train[9] == record[0] == 7
    assert source.x_train[9].tobytes() == record[1:]
    # Green, second row, third pixel.
    assert source.x_train[9, 1, 1, 2] == record[1 + 1024 + 32 + 2]
    assert source.y_test.tolist() == [5, 4, 0, 9]


def test_the_folder_above_will_do_and_names_are_optional(folder: Path) -> None:
    (folder / cifar.NAMES).unlink()
    source = load_source("cifar10", path=folder.parent)
    assert np.array_equal(source.x_train, load_source("cifar10", path=folder).x_train)
    assert source.classes == tuple("0123456789")


def test_a_pipe_for_names_is_not_waited_for(folder: Path) -> None:
    (folder / cifar.NAMES).unlink()
    os.mkfifo(folder / cifar.NAMES)
    with refused(str(folder / cifar.NAMES), "is not a file"):
        load_source("cifar10", path=folder)


def test_shards(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["shard", "cifar10", "--from", str(folder), "--out", str(out), "--shards", "2"]
    assert main(command, Comm()) == 0
    assert "cifar10" in capsys.readouterr().out
    assert read_info(out).sample_shape == (3, 32, 32)
    parts = [read_partition(out, "train", rank, 2) for rank in range(2)]
    assert sorted(np.concatenate([part.y for part in parts])) == sorted(
        load_source("cifar10", path=folder).y_train
    )


def test_misuse(tmp_path: Path) -> None:
    with refused("cifar10: no folder", "--from"):
        load_source("cifar10")
    with refused("--download", "cifar10"):
        load_source("cifar10", path=tmp_path, download=True)
    with refused(str(tmp_path / "nowhere"), "not a folder", "--from"):
        load_source("cifar10", path=tmp_path / "nowhere")
    with refused("data_batch_1.bin", "is missing", "--from"):
        load_source("cifar10", path=tmp_path)


@pytest.mark.parametrize("name", ["data_batch_2.bin", "test_batch.bin"])
def test_damaged_files(folder: Path, name: str) -> None:
    path = folder / name
    good = path.read_bytes()
    for bad, words in {
        good[:-1]: ["12291 bytes", "3073"],
        good + b"\0": ["12293 bytes"],
        b"": ["0 bytes"],
        good[: cifar.RECORD] + b"\x0a" + good[cifar.RECORD + 1 :]: ["record 1", "label 10", "9"],
    }.items():
        path.write_bytes(bad)
        with refused(str(path), *words, "cifar-10-binary.tar.gz"):
            load_source("cifar10", path=folder)
    path.unlink()
    with refused(str(path), "is missing"):
        load_source("cifar10", path=folder)
    path.mkdir()
    with refused(str(path), "is not a file"):
        load_source("cifar10", path=folder)


def test_bad_names(folder: Path) -> None:
    path = folder / cifar.NAMES
    path.write_text("cat\ndog\n", encoding="utf-8")
    with refused(str(path), "2 classes", "remove it"):
        load_source("cifar10", path=folder)
    path.write_bytes(b"\xff\xfe\n" * 10)
    with refused(str(path), "cannot be read"):
        load_source("cifar10", path=folder)
    path.write_text("cat\n" * 10, encoding="utf-8")
    with refused("'cat' is there twice"):
        load_source("cifar10", path=folder)


def test_a_file_that_may_not_be_read(folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (folder / cifar.TEST).chmod(0)
    with refused("test_batch.bin", "cannot be read"):
        load_source("cifar10", path=folder)


def test_real_cifar10() -> None:
    given = DATA / "cifar10"
    if not any((place / cifar.TEST).is_file() for place in (given, given / cifar.FOLDER)):
        pytest.skip(f"no binary CIFAR-10 in {given}; set APTS_MPI_TEST_DATA to the folder above it")
    source = load_source("cifar10", path=given)
    assert source.x_train.shape == (50000, 3, 32, 32)
    assert np.bincount(source.y_test).tolist() == [1000] * 10

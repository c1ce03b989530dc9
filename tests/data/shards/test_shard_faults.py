"""Shards that are missing, misplaced or damaged are reported in one line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apts_mpi.data import (
    Source,
    describe,
    load_source,
    read_info,
    read_partition,
    write_shards,
)
from apts_mpi.data.shards import writing
from apts_mpi.errors import InputError, fault
from tests.data.helpers import refused
from tests.data.shards.test_format import attribute, edit, replace


def toy(seed: int = 0) -> Source:
    """40 training and 9 test samples of 4 features in 3 classes."""
    x = np.random.default_rng(seed).normal(3, 2, size=(49, 4))
    y = np.arange(49) % 3
    return Source("toy", x[:40], y[:40], x[40:], y[40:], classes=("a", "b", "c"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_shards(toy(), tmp_path / "toy", shards=4)
    return tmp_path / "toy"


def test_faults_of_the_folder(sharded: Path, tmp_path: Path) -> None:
    with refused("nowhere", "not a directory"):
        read_info(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with refused("index.h5", "missing"):
        read_partition(tmp_path / "empty", "train", 0, 1)
    (sharded / "test-00001-of-00004.h5").unlink()
    with refused("test-00001-of-00004.h5", "missing"):
        read_info(sharded)
    os.mkfifo(sharded / "test-00001-of-00004.h5")
    with refused("test-00001-of-00004.h5", "not a file"):
        read_info(sharded)
    (sharded / "index.h5").write_text("hello")
    with refused("index.h5", "not an HDF5 file"):
        read_info(sharded)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"shards": 5}, "shards is '5'"),
        ({"seed": 1}, "digest is"),
        ({"name": "other"}, "dataset is 'other'"),
    ],
)
def test_shards_of_another_sharding(sharded: Path, tmp_path: Path, change: Any, word: str) -> None:
    source, shards = toy(), change.pop("shards", 4)
    if "name" in change:
        source = Source(
            change.pop("name"),
            source.x_train,
            source.y_train,
            source.x_test,
            source.y_test,
            source.classes,
        )
    write_shards(source, tmp_path / "other", shards=shards, **change)
    shutil.copy(
        tmp_path / "other" / f"train-00001-of-{shards:05d}.h5", sharded / "train-00001-of-00004.h5"
    )
    for read in (read_info, describe, lambda d: read_partition(d, "train", 1, 4)):
        with refused("train-00001-of-00004.h5", word):
            read(sharded)
    read_partition(sharded, "train", 0, 4)


def test_shards_that_changed_places(sharded: Path) -> None:
    shutil.copy(sharded / "train-00000-of-00004.h5", sharded / "train-00001-of-00004.h5")
    with refused("train-00001-of-00004.h5", "shard is '0', expected '1'"):
        read_info(sharded)


def part(directory: Path, rank: int) -> np.ndarray:
    return read_partition(directory, "train", rank, 3).x


def answer(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns, or None after one line of complaint about `path`."""
    try:
        return read()
    except InputError as error:
        text = str(error)
    assert str(path) in text
    assert len(text.splitlines()) == 1
    return None


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[np.ndarray]]:
    directory = tmp_path_factory.mktemp("pristine") / "toy"
    write_shards(toy(), directory, shards=2)
    parts = [part(directory, rank) for rank in range(3)]
    return directory, describe(directory), parts


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_is_noticed_or_harmless(
    pristine: tuple[Path, str, list[np.ndarray]], data: st.DataObject
) -> None:
    directory, text, parts = pristine
    path = data.draw(st.sampled_from(sorted(directory.iterdir())))
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    flip = data.draw(st.integers(0, 255))  # 0: the file ends here
    bad = good[:place]
    if flip:
        bad += bytes([good[place] ^ flip]) + good[place + 1 :]
    path.write_bytes(bad)
    try:
        for rank, expected in enumerate(parts):
            found = answer(path, partial(part, directory, rank))
            assert found is None or np.array_equal(found, expected)
        found = answer(path, partial(describe, directory))
        assert found is None or (flip and found == text)
    finally:
        path.write_bytes(good)


def test_flipped_bit_in_the_samples(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    write_shards(load_source("digits"), directory, shards=2)
    path = directory / "train-00001-of-00002.h5"
    with h5py.File(path) as file:
        offset = file["x"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 1000] ^= 4
    path.write_bytes(content)
    for ranks in (2, 3):  # a whole shard, and parts of it
        with refused(str(path), "damaged"):
            read_partition(directory, "train", ranks - 1, ranks)
    read_partition(directory, "train", 0, 2)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Black and white in chunks of 16 samples, in a single shard of 120."""
    monkeypatch.setattr(writing, "CHUNK", 1024)
    x = np.zeros((129, 64), np.uint8)
    x[::3] = 255
    source = Source("pictures", x[:120], np.arange(120) % 2, x[120:], np.arange(9) % 2, ("a", "b"))
    write_shards(source, tmp_path / "pictures", shards=1)
    return tmp_path / "pictures" / "train-00000-of-00001.h5"


def spoil(path: Path, name: str, row: int, new: bytes, offset: int = 0) -> None:
    """Overwrite a part of the chunk that holds a row, behind HDF5's back."""
    with h5py.File(path) as file:
        data = file[name].id
        info = data.get_chunk_info_by_coord((row, *(0 for _ in data.shape[1:])))
    content = bytearray(path.read_bytes())
    content[info.byte_offset + offset : info.byte_offset + offset + len(new)] = new
    path.write_bytes(content)


@pytest.mark.parametrize("older", [False, True], ids=["sums", "no sums"])
@pytest.mark.parametrize(
    ("name", "new"),
    [("x", bytes(16 * 64 + 4)), ("y", bytes(120 * 8 + 4)), ("x", b"\0" * 64)],
    ids=["x lost to zeros", "y lost to zeros", "black for white"],
)
def test_what_fletcher32_does_not_notice(
    pictures: Path, name: str, new: bytes, older: bool
) -> None:
    with h5py.File(pictures) as file:
        white = np.flatnonzero(file["x"][:16, 0])[0]
    if older:
        with h5py.File(pictures, "r+") as file:
            del file["sums"], file.attrs["sums"]
    expected = read_partition(pictures.parent, "train", 2, 3)
    spoil(pictures, name, 0, new, offset=64 * int(white) if len(new) == 64 else 0)
    with h5py.File(pictures) as file:
        file[name][:]  # to HDF5 all is well
    with refused(str(pictures)):
        read_partition(pictures.parent, "train", 0, 3)
    with refused(str(pictures)):
        describe(pictures.parent)
    if name == "x" and not older:  # the others' parts are sound
        found = read_partition(pictures.parent, "train", 2, 3)
        assert np.array_equal(found.x, expected.x)
        assert np.array_equal(found.y, expected.y)
    else:
        with refused(str(pictures)):
            read_partition(pictures.parent, "train", 2, 3)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda f: f["sums"].__setitem__((0, 0), 7), "table of checksums"),
        (lambda f: f.pop("sums"), "no data set 'sums'"),
        (lambda f: f.attrs.pop("sums"), "no attribute 'sums'"),
        (replace("sums", data=np.zeros((3, 32), "u1")), "expected uint8 of shape"),
    ],
)
def test_checksums_that_are_damaged(
    pictures: Path, change: Callable[[h5py.File], None], word: str
) -> None:
    edit(pictures, change)
    with refused(str(pictures), word):
        read_partition(pictures.parent, "train", 0, 3)


def test_names_that_cannot_be_printed(sharded: Path) -> None:
    classes = np.array([b"a", b"two\nlines", b"c"])
    edit(sharded / "index.h5", attribute("classes", classes))
    with refused("index.h5", "'classes' is not printable"):
        read_info(sharded)


def test_lines_are_printable_whatever_they_name() -> None:
    text = str(fault("a\x1b[2J", "b\udcff\nc", "d"))
    assert text == "a\\x1b[2J: b\\udcff c; d"
    text.encode()
    assert len(str(fault("a", "b" * 10**6, "c"))) < 600

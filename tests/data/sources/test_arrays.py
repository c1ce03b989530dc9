"""Channels of images in arrays, and the command that makes shards of arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apts_mpi.cli.main import main
from apts_mpi.comm.communicator import Comm
from apts_mpi.data import load_source, read_info, write_shards
from apts_mpi.errors import AgreedError
from tests.data.helpers import read_whole, refused, saved
from tests.data.sources.toys import RNG, K, X


def test_channels_of_which_nobody_can_tell(tmp_path: Path) -> None:
    for dtype in ("u1", "f4"):
        for channels in (2, 5, 6, 12):
            x = RNG.integers(0, 256, size=(40, 16, 16, channels)).astype(dtype)
            path = saved(tmp_path / "own.npz", x=x, y=K)
            with refused(str(path), f"(40, 16, 16, {channels})", "--channels-last on", "or off"):
                load_source("arrays", path=path)
            on, off = (read_whole(path, channels_last=last) for last in (True, False))
            assert on.x_train.shape[1:] == (channels, 16, 16)
            assert off.x_train.shape[1:] == (16, 16, channels)


def test_channels_that_are_first_already(tmp_path: Path) -> None:
    for shape in ((1, 16, 16), (3, 16, 16), (4, 6, 7)):
        path = saved(tmp_path / "own.npz", x=np.zeros((40, *shape), np.uint8), y=K)
        with refused(str(path), str(shape)[1:], "channels first already", "--channels-last on"):
            load_source("arrays", path=path, channels_last=True)
    for shape in ((1, 16, 3), (16, 3, 2)):
        path = saved(tmp_path / "own.npz", x=np.zeros((40, *shape), np.uint8), y=K)
        assert read_whole(path, channels_last=True).x_train.shape[2:] == shape[:2]


IMAGES = RNG.integers(0, 256, size=(40, 6, 7, 3), dtype=np.uint8)


def test_bytes_with_channels_last_are_turned_and_said_to_be(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path / f"own{suffix}", x=IMAGES, y=K)
    turned = read_whole(path)
    assert "channels last" in caplog.text
    assert "--channels-last off" in caplog.text
    caplog.clear()
    first = read_whole(saved(tmp_path / f"first{suffix}", x=IMAGES.transpose(0, 3, 1, 2), y=K))
    assert np.array_equal(turned.x_train, first.x_train)
    assert turned.x_train.shape[1:] == (3, 6, 7)
    assert np.array_equal(read_whole(path, channels_last=True).x_test, first.x_test)
    left = read_whole(path, channels_last=False)
    assert left.x_train.shape[1:] == (6, 7, 3)
    assert not caplog.text
    path = saved(path, x=IMAGES / 255.0, y=K)
    with refused(str(path), "(40, 6, 7, 3)", "channels last", "--channels-last on", "or off"):
        load_source("arrays", path=path)
    assert read_whole(path, channels_last=True).x_train.shape[1:] == (3, 6, 7)
    caplog.clear()
    with refused("y holds label 0.5"):
        load_source("arrays", path=saved(path, x=IMAGES, y=K + 0.5))
    assert not caplog.text  # of what is done to what is not taken
    path = saved(path, x=X, y=K)
    with refused(str(path), "(40, 6)", "--channels-last"):
        load_source("arrays", path=path, channels_last=True)


def test_what_may_be_channels_first_is_left(tmp_path: Path) -> None:
    for shape in ((3, 6, 7), (3, 32, 3), (1, 28, 28), (6, 7, 5), (4, 4, 3), (16, 16)):
        x = RNG.integers(0, 256, size=(40, *shape), dtype=np.uint8)
        source = read_whole(saved(tmp_path / "own.npz", x=x, y=K))
        assert source.x_train.shape[1:] == shape


@pytest.mark.parametrize(
    "flags", [["--augment", "flip"], ["--network", "cnn"], ["--network", "resnet"]]
)
def test_shards_with_channels_last_are_refused_where_it_matters(
    tmp_path: Path, flags: list[str]
) -> None:
    path = saved(tmp_path / "own.npz", x=IMAGES, y=K)
    write_shards(load_source("arrays", path=path, channels_last=False), tmp_path / "d", shards=1)
    with pytest.raises(AgreedError, match=r"\(6, 7, 3\).*--channels-last on"):
        main(["--data", str(tmp_path / "d"), "--out", str(tmp_path / "r"), *flags], Comm())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", IMAGES / 255)
    np.save(tmp_path / "y.npy", K)
    command = ["shard", "arrays", "--out", str(tmp_path / "d"), "--shards", "2"]
    files = ["--x", str(tmp_path / "x.npy"), "--y", str(tmp_path / "y.npy")]
    assert main([*command, *files, "--channels-last", "on"], Comm()) == 0
    assert "float32 (3, 6, 7)" in capsys.readouterr().out
    assert read_info(tmp_path / "d").name == "x"

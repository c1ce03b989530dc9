"""Targets that are real numbers: arrays, shards, parts, and what `inspect` says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apts_mpi.cli.main import main
from apts_mpi.comm.communicator import Comm
from apts_mpi.data import Source, describe, load_source, read_info, read_partition, write_shards
from apts_mpi.data.shards import index as layout
from tests.data.helpers import refused, saved

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 3))
Y = X @ RNG.normal(size=(3, 2)) + 5


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("one", [True, False])
def test_arrays(tmp_path: Path, suffix: str, one: bool) -> None:
    y = Y[:, 0] if one else Y
    path = saved(tmp_path / f"own{suffix}", x=X, y=y)
    source = load_source("arrays", path=path, task="regression")
    assert (source.y_train.shape, source.y_test.shape) == ((40, 2 - one), (10, 2 - one))
    assert source.y_train.dtype == np.float32
    assert source.classes == ()
    found = np.concatenate([np.hstack([source.x_train, source.y_train])])
    expected = np.hstack([X, y.reshape(50, -1)]).astype("f4")
    assert {row.tobytes() for row in found} < {row.tobytes() for row in expected}
    again = load_source("arrays", path=path, task="regression", seed=1)
    assert not np.array_equal(again.x_test, source.x_test)
    path = saved(tmp_path / f"split{suffix}", x_train=X, y_train=y, x_test=X[:4], y_test=y[:4])
    source = load_source("arrays", path=path, task="regression")
    assert np.array_equal(source.y_test, y[:4].reshape(4, -1).astype("f4"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X, "y": Y[:9]}, ["y has 9 targets for 50 samples"]),
        ({"x": X, "y": np.where(Y[3, 1] == Y, np.nan, Y)}, ["y[3, 1] is nan"]),
        ({"x": X, "y": np.full(50, 1e300)}, ["y[0, 0] is 1e+300"]),
        ({"x": X, "y": Y[:, :, None].repeat(3, 2)}, ["y is float64 of shape (50, 2, 3)"]),
        ({"x": X, "y": Y.astype("S4")}, ["|S4"]),
        ({"x": X, "y": Y, "classes": np.array([b"a", b"b"])}, ["has classes"]),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y[:, 0]}, ["2 and 1 outputs"]),
        ({"x": X[:1], "y": Y[:1]}, ["1 samples, none"]),
        ({"x": X, "y": 1e-4 * Y + 1e3}, ["y[:, 0] varies by ", "about 1000", "subtract"]),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, Any], words: list[str]) -> None:
    path = saved(tmp_path / "own.h5", **arrays)
    with refused(str(path), *words):
        load_source("arrays", path=path, task="regression")


def test_misuse(tmp_path: Path) -> None:
    for options in ({"task": "language"}, {"task": "regression", "classes": ("a", "b")}):
        with pytest.raises(ValueError, match="a source of"):
            Source("own", X, Y, X, Y, **options)
    source = Source("own", X, Y, X, Y, task="regression")
    more: list[dict[str, Any]] = [{"stratified": True}, {"dirichlet": 1.0}]
    for options in more:
        with refused(f"--{next(iter(options))}", "no classes"):
            write_shards(source, tmp_path / "d", shards=2, **options)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_shards(Source("own", X, Y, X[:9], Y[:9], task="regression"), tmp_path / "d", shards=3)
    return tmp_path / "d"


def test_parts(sharded: Path) -> None:
    info = read_info(sharded)
    assert (info.task, info.outputs, info.target_shape) == ("regression", 2, (2,))
    single = Y.astype("f4").astype(float)
    assert info.target_mean is not None
    assert info.target_std is not None
    assert np.allclose(info.target_mean, single.mean(axis=0), rtol=1e-12)
    assert np.allclose(info.target_std, single.std(axis=0), rtol=1e-12)
    for ranks in (1, 3, 4):
        parts = [read_partition(sharded, "train", rank, ranks) for rank in range(ranks)]
        x, y = (np.concatenate([getattr(part, name) for part in parts]) for name in "xy")
        assert y.dtype == np.float32
        raw = x * info.std + info.mean
        order = np.argsort(raw[:, 0])
        assert np.allclose(raw[order], X[np.argsort(X[:, 0])], atol=1e-5)
        assert np.array_equal(y[order], Y[np.argsort(X[:, 0])].astype("f4"))


def test_inspect(sharded: Path) -> None:
    lines = describe(sharded).splitlines()
    assert any(line.startswith("targets        float32 (2,): mean ") for line in lines)
    with h5py.File(sharded / "train-00001-of-00003.h5") as file:
        y = file["y"][:]
    row = next(line.split() for line in lines if "train-00001" in line)
    assert row[1:] == ["17", "17", f"{y.min():.4g}", f"{y.mean():.4g}", f"{y.max():.4g}"]


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("target_mean", np.nan, "not finite"),
        ("target_std", 7.0, "digest"),
        ("target_shape", [2, 3], "of one dimension"),
        ("target_shape", [0], "must be positive"),
        ("target_shape", [2**62], "expected float64 of shape"),
    ],
)
def test_forged_indices(sharded: Path, name: str, value: Any, word: str) -> None:
    with h5py.File(sharded / "index.h5", "r+") as file:
        if name == "target_shape":
            file.attrs[name] = value
        else:
            file[name][0] = value
    layout.seal(sharded / "index.h5")
    with refused("index.h5", word):
        read_info(sharded)


def test_targets_that_are_not_finite(sharded: Path) -> None:
    with h5py.File(sharded / "train-00001-of-00003.h5", "r+") as file:
        file["y"][3, 1] = np.inf
        del file["sums"], file.attrs["sums"]
    with refused("train-00001-of-00003.h5", "y[3] holds NaN or infinity"):
        read_partition(sharded, "train", 1, 3)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "own.npz", x=X, y=Y)
    command = ["shard", "arrays", "--from", str(path), "--out", str(tmp_path / "d")]
    assert main([*command, "--shards", "2", "--task", "regression"], Comm()) == 0
    assert "own (regression, format 2)" in capsys.readouterr().out

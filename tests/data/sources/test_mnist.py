"""MNIST in its IDX files, and its download."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import urllib.request
from pathlib import Path
from typing import ClassVar
from urllib.error import URLError

import numpy as np
import pytest

from apts_mpi.data import load_source
from apts_mpi.data.sources import mnist
from tests.data.helpers import DATA, refused


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


IMAGES = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path: Path, packed: bool) -> None:
    path, content = tmp_path / "images", idx(IMAGES)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert np.array_equal(mnist.read_idx(path, 3), IMAGES)
    md5 = hashlib.md5(content).hexdigest()
    assert np.array_equal(mnist.read_idx(path, 3, md5=md5), IMAGES)
    with refused(str(path), md5, "arrays"):
        mnist.read_idx(path, 3, md5="0" * 32)
    faults = {
        content[:-1]: "",
        content + b"\0": "more than the 60 bytes",
        content[:10]: "00000803",
        b"": "nothing",
        b"\0\0\x09" + content[3:]: "00000903",
        struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1): "claims",
    }
    for bad, word in faults.items():
        path.write_bytes(gzip.compress(bad) if packed else bad)
        with refused(str(path), word):
            mnist.read_idx(path, 3)
    path.write_bytes(content)
    with refused("00000803", "1 dimensions"):
        mnist.read_idx(path, 1)


def test_damaged_and_swollen_gzip(tmp_path: Path) -> None:
    path, good = tmp_path / "images.gz", bytearray(gzip.compress(idx(IMAGES)))
    for bad in (good[:30], good[:-8] + b"\0" * 8, good[:12] + b"\xff" * 20 + good[32:]):
        path.write_bytes(bad)
        with refused(str(path)):
            mnist.read_idx(path, 3)
    # Zeros behind it, which would be looked at one by one for minutes.
    path.write_bytes(gzip.compress(idx(IMAGES)))
    os.truncate(path, 60_000_000)
    with refused(str(path), "more than the 60 bytes"):
        mnist.read_idx(path, 3)
    os.truncate(path, 3 * 10**8)
    with refused(str(path), "has 300000000 bytes, more than any file of MNIST"):
        mnist.read_idx(path, 3)
    # 100 MB of zeros after the content: one byte of them is looked at.
    path.write_bytes(gzip.compress(idx(IMAGES) + bytes(10**8), compresslevel=1))
    with refused(str(path), "more than the 60 bytes"):
        mnist.read_idx(path, 3)


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Four small files, taken for the canonical ones, by name."""
    rng = np.random.default_rng(0)
    files, table = {}, {}
    for name in mnist.FILES:
        n = 30 if name.startswith("train") else 10
        shape = (n, 28, 28) if "images" in name else (n,)
        files[name] = idx(rng.integers(0, 10, size=shape, dtype=np.uint8))
        table[name] = (len(shape), hashlib.md5(files[name]).hexdigest())
    monkeypatch.setattr(mnist, "FILES", table)
    return files


def test_mnist_folder(tmp_path: Path, small_mnist: dict[str, bytes]) -> None:
    for k, (name, content) in enumerate(small_mnist.items()):
        spelling = name.replace("-idx", ".idx") if k % 2 else name
        if k < 2:
            (tmp_path / spelling).write_bytes(content)
        else:
            (tmp_path / f"{spelling}.gz").write_bytes(gzip.compress(content))
    source = load_source("mnist", path=tmp_path)
    assert source.x_train.shape == (30, 1, 28, 28)
    assert source.x_test.tobytes() == small_mnist["t10k-images-idx3-ubyte"][16:]
    (tmp_path / "train-labels.idx1-ubyte").unlink()
    with refused(str(tmp_path), "train-labels-idx1-ubyte", "--download"):
        load_source("mnist", path=tmp_path)


class Answer(io.BytesIO):
    headers: ClassVar[dict[str, str]] = {}


def test_download(
    tmp_path: Path, small_mnist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    spoilt: set[str] = set()

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append(url.removeprefix("https://ossci-datasets.s3.amazonaws.com/mnist/"))
        name = asked[-1].removesuffix(".gz")
        if name in spoilt:
            return Answer(gzip.compress(small_mnist[name][:-1] + b"\x07"))
        return Answer(gzip.compress(small_mnist[name]))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setenv("APTS_MPI_CACHE", str(tmp_path))
    spoilt.add("t10k-images-idx3-ubyte")
    with refused("https://", "t10k-images-idx3-ubyte.gz", "md5"):
        load_source("mnist", download=True)
    kept = ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
    assert sorted(p.name for p in (tmp_path / "mnist").iterdir()) == kept
    spoilt.clear()
    asked.clear()
    source = load_source("mnist", download=True)
    assert asked == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    assert len(source.y_test) == 10
    asked.clear()
    assert np.array_equal(load_source("mnist").x_train, source.x_train)
    assert asked == []


def test_download_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with refused("https://", "no route to host", "fetch the four files", "--from"):
        load_source("mnist", path=tmp_path / "new", download=True)
    assert not list((tmp_path / "new").iterdir())


def test_real_mnist() -> None:
    if not (DATA / "mnist").is_dir():
        pytest.skip(f"no MNIST in {DATA / 'mnist'}; set APTS_MPI_TEST_DATA to the folder above it")
    source = load_source("mnist", path=DATA / "mnist")
    assert source.x_train.shape == (60000, 1, 28, 28)
    assert source.x_test.shape == (10000, 1, 28, 28)
    assert abs(source.x_train.mean() / 255 - 0.1307) < 1e-4
    assert np.bincount(source.y_train)[:3].tolist() == [5923, 6742, 5958]

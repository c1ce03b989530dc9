"""The data sets of the benchmarks: where they lie, and their shards."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from apts_mpi.data import load_source, load_text, write_shards
from apts_mpi.data.sources.source import Source
from apts_mpi.errors import InputError
from benchmarks.harness.jobs import ROOT
from benchmarks.harness.options import option

SOURCES = ("digits", "mnist", "cifar10", "text")
CIFAR = option(
    "--cifar",
    type=Path,
    metavar="DIR",
    help="folder of CIFAR-10's binary files, or the one above (default "
    "$APTS_MPI_TEST_DATA/cifar10, or shared/data/cifar10 beside the checkout)",
)


_PLACES = {  # below the data, and how to get what is to be there
    "mnist": (
        "mnist",
        "no such folder; fetch the four files with: python -m apts_mpi shard mnist --download "
        "--from DIR --out DIR-2 --shards 2, then give --mnist DIR",
    ),
    "cifar10": (
        "cifar10",
        "has no data_batch_1.bin to 5 and test_batch.bin; unpack cifar-10-binary.tar.gz from "
        "https://www.cs.toronto.edu/~kriz/cifar.html, then give --cifar DIR",
    ),
    "text": (
        "tinyshakespeare.txt",
        "is missing; put the text of "
        "https://github.com/karpathy/char-rnn/tree/master/data/tinyshakespeare there, or name its "
        "folder in APTS_MPI_TEST_DATA",
    ),
}


def find(source: str, given: Path | None = None) -> Path | None:
    """The original files of a data set: a folder, or the text itself; None for the digits.

    Raises:
        InputError: they are not there; the line says how to get them.
    """
    if source == "digits":
        return None
    name, advice = _PLACES[source]
    data = Path(os.environ.get("APTS_MPI_TEST_DATA", ROOT.parent / "shared" / "data"))
    path = given or data / name
    if source == "cifar10":
        folders = (path, path / "cifar-10-batches-bin")
        there = any((folder / "test_batch.bin").is_file() for folder in folders)
    else:
        there = path.is_file() if source == "text" else path.is_dir()
    if not there:
        flag = {"mnist": "--mnist ", "cifar10": "--cifar "}.get(source, "")
        raise InputError(f"{flag}{path}: {advice}")
    return path


class Shards:
    """Data sets cut for numbers of ranks, made once in a folder.

    Args:
        folder: of the shards. mnist, cifar: folders of the original files; None finds them.
    """

    def __init__(
        self, folder: Path, *, mnist: Path | None = None, cifar: Path | None = None
    ) -> None:
        self.folder, self._given = folder, {"mnist": mnist, "cifar10": cifar}

    def path(self, source: str, ranks: int) -> Path:
        """Where the shards of a data set for so many ranks are."""
        return self.folder / f"{source}-{ranks}"

    def make(self, source: str, ranks: int) -> None:
        """Cut where that is not done yet.

        Raises:
            InputError: the original files are not there, or damaged.
        """
        path = self.path(source, ranks)
        if path.exists():
            return
        given = self.original(source)
        if source == "text" and given is not None:
            write_shards(load_text(given), path, shards=ranks, exist_ok=True)
        else:  # one mean for all channels: the results that there are were made so
            original = load_source(source, path=given)
            write_shards(original, path, shards=ranks, normalize="one", exist_ok=True)

    def original(self, source: str) -> Path | None:
        """The original files of a data set; None for the embedded digits.

        Raises:
            InputError: they are not there.
        """
        return find(source, self._given.get(source))


def cut(data: str, folder: Path, mnist: Path | None) -> tuple[str, Path]:
    """Name and shards of the data, made where they are not there; every rank reads its part.

    Where MNIST is not found and was not asked for by name, random samples of its shape stand in:
    they take the same time.
    """
    shards = Shards(folder, mnist=mnist)
    try:
        shards.make(data, 1)
    except InputError as error:
        if data != "mnist" or mnist is not None:
            raise
        print(f"{error}; timing random samples of its shape instead", flush=True)
        data = "mnist-shaped"
        if not shards.path(data, 1).exists():
            write_shards(like_mnist(), shards.path(data, 1), shards=1, exist_ok=True)
    return data, shards.path(data, 1)


def like_mnist() -> Source:
    """Random samples in the shape of MNIST."""
    chance = np.random.default_rng(0)
    x = chance.integers(0, 256, (70_000, 28, 28), dtype=np.uint8)
    y = chance.integers(0, 10, 70_000)
    classes = tuple(str(digit) for digit in range(10))
    return Source("mnist-shaped", x[:60_000], y[:60_000], x[60_000:], y[60_000:], classes)

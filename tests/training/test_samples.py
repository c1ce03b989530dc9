"""What ranks open and read at the start of a run, with ranks played one after the other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from apts_mpi.comm.alone import Alone
from apts_mpi.data import Source, TextSource, read_index, read_partition, write_shards
from apts_mpi.errors import AgreedError
from apts_mpi.training.samples import load
from tests.conftest import Launch

CPU = torch.device("cpu")


class Played(Alone):
    """One of several ranks, the lower ones of which have been played before."""

    def __init__(self, rank: int, size: int, said: dict[int, str]) -> None:
        super().__init__()
        self.rank, self.size, self._said = rank, size, said

    def broadcast_text(self, text: str, root: int = 0) -> str:
        if self.rank == root:
            self._said[root] = text
        return self._said[root]

    def _first(self, error: Exception | None, line: str, origin: int = 0) -> tuple[int, int, str]:
        return self.size if error is None else self.rank, origin, line


def played(directory: Path, ranks: int, **options: Any) -> list[Any]:
    """What `load` gives to each of so many ranks, or the error of a rank."""
    said: dict[int, str] = {}
    found: list[Any] = []
    for rank in range(ranks):
        try:
            comm = Played(rank, ranks, said)
            found.append(load(str(directory), comm, print, device=CPU, **options))
        except AgreedError as error:
            found.append(str(error))
    return found


def sharded(directory: Path, shards: int, tests: int = 40) -> Path:
    x = np.random.default_rng(0).normal(size=(130 + tests, 3))
    y = np.arange(130 + tests) % 2
    source = Source("toy", x[:130], y[:130], x[130:], y[130:], classes=("a", "b"))
    write_shards(source, directory, shards=shards)
    return directory


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each HDF5 file is opened, by its name."""
    counted: Counter[str] = Counter()

    class Counted(h5py.File):
        def __init__(self, name: Any, *arguments: Any, **options: Any) -> None:
            counted[Path(name).name] += 1
            super().__init__(name, *arguments, **options)

    monkeypatch.setattr(h5py, "File", Counted)
    return counted


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 files of samples."""
    return sharded(tmp_path_factory.mktemp("many") / "d", 32)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ranks", [1, 5, 33])
def test_64_files_are_opened_once_and_where_parts_meet(
    many: Path, opens: Counter[str], ranks: int, stream: bool
) -> None:
    played(many, ranks, stream=stream)
    assert opens.pop("index.h5") == 1
    assert len(opens) == 64
    # A shard that k ranks have a part of is opened k times: two splits have ranks - 1 seams each.
    assert opens.total() <= 64 + 2 * (ranks - 1)


def test_as_many_ranks_as_shards_open_each_once(many: Path, opens: Counter[str]) -> None:
    played(many, 32)
    assert set(opens.values()) == {1}


def test_what_nobody_reads_is_shared_out_evenly(many: Path, opens: Counter[str]) -> None:
    said = {0: read_index(many).to_text()}
    shares = []
    for rank in range(8):
        opens.clear()
        load(str(many), Played(rank, 8, said), print, device=CPU, splits=["test"])
        shares.append(sum("train" in name for name in opens))
    assert shares == [4] * 8


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("shard", [0, 4])
@pytest.mark.parametrize(("ranks", "splits"), [(1, None), (2, ["test"]), (3, None), (7, ["train"])])
def test_a_lost_shard_is_noticed_by_a_rank(
    tmp_path: Path, split: str, shard: int, ranks: int, splits: list[str] | None
) -> None:
    name = f"{split}-{shard:05d}-of-00005.h5"
    (sharded(tmp_path / "d", 5, tests=2) / name).unlink()
    found = played(tmp_path / "d", ranks, splits=splits)
    assert any(name in each for each in found if isinstance(each, str))


@pytest.mark.parametrize("stream", [False, True])
def test_ranks_read_their_parts_by_rank_zeros_index(tmp_path: Path, stream: bool) -> None:
    sharded(tmp_path / "d", 4)
    for rank, (_, parts) in enumerate(played(tmp_path / "d", 3, stream=stream)):
        expected = read_partition(tmp_path / "d", "train", rank, 3)
        x, y = parts["train"][0].take(np.arange(len(expected.y)))
        assert np.array_equal(x, expected.x)
        assert np.array_equal(y, expected.y)


def test_a_text_whose_shards_have_no_window_is_checked_too(tmp_path: Path) -> None:
    tokens = np.arange(60, dtype=np.uint8) % 3
    write_shards(TextSource("t", tokens, tokens[:12], ("a", "b", "c")), tmp_path / "d", shards=4)
    (tmp_path / "d" / "test-00003-of-00004.h5").unlink()
    (found,) = played(tmp_path / "d", 1, context=2)
    assert "test-00003-of-00004.h5: is missing" in found


def test_an_empty_shard_that_is_lost_ends_a_run_with_one_line(
    launch: Launch, tmp_path: Path
) -> None:
    name = "test-00004-of-00005.h5"
    (sharded(tmp_path / "d", 5, tests=2) / name).unlink()
    done = launch(3, "-m", "apts_mpi", "--data", "d", "--iterations", "1")
    assert done.status == 2
    (line,) = done.told
    assert f"{name}: is missing" in line


def test_more_subdomains_than_the_digits_have_samples_are_refused_by_their_flag() -> None:
    line = "--subdomains-per-rank 4000: 1 ranks have 4000 subdomains, and the digits .* give fewer"
    with pytest.raises(AgreedError, match=line):
        load("digits", Alone(), print, device=torch.device("cpu"), subdomains=4000)

"""The thread that reads ahead: memory, damage, its end."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest

from apts_mpi.data import Source, read_partition, write_shards
from apts_mpi.data.minibatches import streaming
from apts_mpi.data.minibatches.streaming import Stream
from apts_mpi.data.shards import writing
from tests.data.helpers import refused
from tests.data.minibatches.streams import followed, source_of, threads


@pytest.mark.parametrize("images", [True, False])
def test_memory_is_bounded_whatever_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: bool
) -> None:
    for module in (writing, streaming):
        monkeypatch.setattr(module, "CHUNK", 8192)
    monkeypatch.setattr(streaming, "READY", 1 << 18)
    monkeypatch.setattr(streaming, "_BLOCK", 1 << 16)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size=(24_000, 512), dtype=np.uint8)
    if not images:
        x = x[:, :128].astype("f4")
    y = np.arange(len(x)) % 2
    write_shards(Source("big", x, y, x[:10], y[:10], ("a", "b")), tmp_path / "d", shards=2)
    size = x.nbytes
    del x
    peaks = []
    with Stream(tmp_path / "d", "test", 0, 1) as stream:  # what is imported on first use is not its
        next(stream.blocks(5))
    tracemalloc.start()
    with Stream(tmp_path / "d", "train", 0, 1) as stream:
        batches = followed(stream, 64)
        bound = stream.memory(batches.widest)
        for index in itertools.islice(batches, batches.per_pass + 100):
            stream.take(index)
        peaks.append(tracemalloc.get_traced_memory()[1])
        stream.close()
        del batches
        tracemalloc.reset_peak()
        for _ in stream.blocks(64):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert bound / 8 < max(peaks) < bound < size / 4, (peaks, bound)


def test_what_is_ready_does_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "READY", 1 << 20)
    write_shards(source_of("bytes"), tmp_path / "d", shards=1)
    with Stream(tmp_path / "d", "train", 0, 1) as stream:
        followed(stream, 7)
        ahead = stream._ahead
        assert ahead is not None
        deadline = time.monotonic() + 5
        while len(ahead._ready) < 16 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(ahead._ready) == 16


def spoil(path: Path, name: str, chunk: int) -> None:
    """Turn a byte of a chunk."""
    with h5py.File(path) as file:
        place = file[name].id.get_chunk_info(chunk).byte_offset
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["x", "y"])
def test_damage_comes_up_where_it_is_drawn(tmp_path: Path, name: str) -> None:
    write_shards(source_of("floats", 400), tmp_path / "d", shards=2)
    path = tmp_path / "d" / "train-00001-of-00002.h5"
    part = read_partition(tmp_path / "d", "train", 0, 1)
    stream = Stream(tmp_path / "d", "train", 0, 1, window=2)
    spoil(path, name, 3)
    batches, drawn = followed(stream, 7), 0
    with refused(path.name, f"is damaged ({name}["):
        for index in itertools.islice(batches, batches.per_pass):
            x, _ = stream.take(index)
            assert np.array_equal(x, part.x[index])
            drawn += 1
    assert 0 < drawn < batches.per_pass
    with refused(path.name, "is damaged"):  # and again
        stream.take(next(batches))
    with refused(path.name, "is damaged"):
        list(stream.blocks(10))
    stream.close()
    assert threads() == 0


def test_files_that_vanish_or_shrink(tmp_path: Path) -> None:
    write_shards(source_of("bytes", 4000), tmp_path / "d", shards=1)
    path = tmp_path / "d" / "train-00000-of-00001.h5"
    good = path.read_bytes()
    for change, word in ((path.unlink, "missing"), (lambda: path.write_bytes(good[:8000]), "ends")):
        with Stream(tmp_path / "d", "train", 0, 1, window=2) as stream:
            batches = followed(stream, 7)
            stream.take(next(batches))
            change()
            with refused(path.name, word):
                for index in batches:
                    stream.take(index)
        path.write_bytes(good)


def test_the_thread_ends_with_its_stream(tmp_path: Path) -> None:
    write_shards(source_of("bytes"), tmp_path / "d", shards=1)
    stream = Stream(tmp_path / "d", "train", 0, 1)
    batches = followed(stream, 7)
    followed(stream, 7)  # takes the place of the first
    assert threads() == 1
    del stream
    gc.collect()
    assert threads() == 0
    stream = Stream(tmp_path / "d", "train", 0, 1)
    stream.follow(batches)
    blocks = stream.blocks(3)
    next(blocks)
    assert threads() == 2
    blocks.close()  # type: ignore[attr-defined]
    stream.close()
    stream.close()
    assert threads() == 0
    stream.take(next(batches))  # still works


def test_errors_of_the_thread_are_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(source_of("bytes"), tmp_path / "d", shards=1)
    stream = Stream(tmp_path / "d", "train", 0, 1)

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(stream._part, "pair", fail)
    batches = followed(stream, 7)
    with pytest.raises(MemoryError, match="no room"):
        stream.take(next(batches))


@pytest.mark.parametrize("end", ["pass", "1 / 0", "sys.exit(3)"])
def test_a_program_ends_with_the_thread_at_work(tmp_path: Path, end: str) -> None:
    write_shards(source_of("bytes", 4000), tmp_path / "d", shards=1)
    program = (
        "import sys\n"
        "from apts_mpi.data.minibatches.batches import Batches\n"
        "from apts_mpi.data.minibatches.streaming import Stream\n"
        "s = Stream(sys.argv[1], 'train', 0, 1, window=2)\n"
        "b = Batches(s.samples, largest=s.samples, batch=7, window=2)\n"
        "s.follow(b)\n"
        "s.take(next(b))\n"
        f"{end}\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "d")],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert run.returncode == {"pass": 0, "1 / 0": 1, "sys.exit(3)": 3}[end]
    assert ("ZeroDivisionError" in run.stderr) == (end == "1 / 0")
    assert "thread" not in run.stderr.lower()

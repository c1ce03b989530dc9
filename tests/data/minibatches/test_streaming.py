"""Streams of minibatches against the part read whole; memory, damage, and the thread's end."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apts_mpi.data import Source, TextSource, read_partition, write_shards
from apts_mpi.data.minibatches import streaming
from apts_mpi.data.minibatches.batches import Batches, Leg, Place
from apts_mpi.data.minibatches.streaming import Stream
from apts_mpi.data.shards import writing
from tests.data.sources.test_sources import refused

KINDS = ("bytes", "floats", "targets", "text", "wide text")
CONTEXT = {"text": 5, "wide text": 5}


def source_of(kind: str, samples: int = 90) -> Source | TextSource:
    rng = np.random.default_rng(0)
    if kind in CONTEXT:
        words = 300 if kind == "wide text" else 9
        text = rng.integers(0, words, samples * 7).astype("<i4" if words > 256 else np.uint8)
        cut = samples * 6
        return TextSource("text", text[:cut], text[cut:], tuple(map("w{}".format, range(words))))
    x = rng.normal(3, 2, (samples + 20, 2, 3)).astype("f4")
    if kind == "bytes":
        x = rng.integers(0, 256, x.shape, dtype=np.uint8)
    y = rng.integers(0, 3, len(x))
    parts = (x[:samples], y[:samples], x[samples:], y[samples:])
    if kind == "targets":
        z = rng.normal(size=(len(x), 2))
        return Source("z", x[:samples], z[:samples], x[samples:], z[samples:], task="regression")
    return Source("toy", *parts, classes=("a", "b", "c"))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few samples, so that there are many."""
    monkeypatch.setattr(writing, "CHUNK", 100)
    monkeypatch.setattr(streaming, "CHUNK", 100)


def followed(stream: Stream, batch: int, **options: Any) -> Batches:
    """Minibatches that a stream follows from their start."""
    batches = Batches(
        stream.samples, largest=stream.samples, batch=batch, window=stream.window, **options
    )
    stream.follow(batches)
    return batches


def check(stream: Stream, batches: Iterator[np.ndarray], part: Any, draws: int) -> None:
    """So many draws give what the part has."""
    for index in itertools.islice(batches, draws):
        x, y = stream.take(index)
        assert (x.dtype, y.dtype) == (part.x.dtype, part.y.dtype)
        assert np.array_equal(x, part.x[index])
        assert np.array_equal(y, part.y[index])


def threads() -> int:
    return sum(thread.name == "reading ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_minibatches_are_those_of_the_part(tmp_path: Path, kind: str, ranks: int) -> None:
    write_shards(source_of(kind), tmp_path / "d", shards=2)
    context = CONTEXT.get(kind)
    for rank in range(ranks):
        part = read_partition(tmp_path / "d", "train", rank, ranks, context)
        with Stream(tmp_path / "d", "train", rank, ranks, context=context, window=3) as stream:
            assert (stream.samples, stream.start, stream.total) == (
                len(part.x),
                part.start,
                part.total,
            )
            batches = followed(stream, 7, seed=5, rank=rank, overlap=30.0)
            assert batches.per_pass > 3
            check(stream, batches, part, 2 * batches.per_pass + 3)
            assert stream.missed == 0


def test_the_default_window(tmp_path: Path, kind: str) -> None:
    write_shards(source_of(kind), tmp_path / "d", shards=1)
    context = CONTEXT.get(kind)
    part = read_partition(tmp_path / "d", "train", 0, 1, context)
    with Stream(tmp_path / "d", "train", 0, 1, context=context) as stream:
        assert 4 <= stream.window < len(part.x)
        check(stream, followed(stream, 4), part, 60)


@settings(max_examples=20, deadline=None)
@given(
    shards=st.integers(1, 4),
    ranks=st.integers(1, 4),
    batch=st.integers(1, 40),
    window=st.integers(1, 20),
    began=st.integers(1, 5),
    draws=st.integers(1, 12),
)
def test_streams_go_on_where_a_run_was(
    tmp_path_factory: pytest.TempPathFactory,
    shards: int,
    ranks: int,
    batch: int,
    window: int,
    began: int,
    draws: int,
) -> None:
    """Also in a pass that another number of ranks began."""
    directory = tmp_path_factory.mktemp("stream") / "d"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "CHUNK", 100)
        info = write_shards(source_of("bytes"), directory, shards=shards)
    sizes = info.splits["train"].sizes
    first = Batches(90 // began, largest=-(-90 // began), batch=batch, window=window)
    place = Place(1, (Leg(began, first.per_pass, 1),))
    part = read_partition(directory, "train", 0, ranks)
    with Stream(directory, "train", 0, ranks, window=window) as stream:
        batches = Batches(
            stream.samples, largest=max(90, stream.samples), batch=batch, window=window
        )
        try:
            batches.go_to(place, sizes, ranks)
        except ValueError:  # as many ranks, but another way to cut, or nothing is left
            return
        stream.follow(batches)
        check(stream, batches, part, draws)
        assert stream.missed == 0


def test_what_is_not_expected_is_read_at_once(tmp_path: Path, kind: str) -> None:
    write_shards(source_of(kind), tmp_path / "d", shards=2)
    context = CONTEXT.get(kind)
    part = read_partition(tmp_path / "d", "train", 0, 1, context)
    with Stream(tmp_path / "d", "train", 0, 1, context=context, window=4) as stream:
        any_order = np.array([70, 3, 3, 0, 89, 41])
        check(stream, iter([any_order, np.array([], dtype=int)]), part, 2)
        batches = followed(stream, 7)
        check(stream, batches, part, 3)
        check(stream, iter([any_order]), part, 1)
        check(stream, batches, part, 30)  # in step as before
        assert stream.missed == 3
        for wrong in (-1, stream.samples):
            with pytest.raises(IndexError, match=str(wrong)):
                stream.take(np.array([wrong]))


def test_blocks(tmp_path: Path, kind: str) -> None:
    write_shards(source_of(kind), tmp_path / "d", shards=2)
    context = CONTEXT.get(kind)
    for rank, rows in itertools.product(range(3), (1, 7, 1000)):
        part = read_partition(tmp_path / "d", "test", rank, 3, context)
        stream = Stream(tmp_path / "d", "test", rank, 3, context=context, window=4)
        for _ in range(2):
            blocks = list(stream.blocks(rows))
            assert [len(x) for x, _ in blocks[:-1]] == [rows] * (len(blocks) - 1)
            for k, name in enumerate("xy"):
                found = np.concatenate([block[k] for block in blocks])
                assert np.array_equal(found, getattr(part, name))
    assert threads() == 0


def test_an_empty_part_has_no_blocks(tmp_path: Path) -> None:
    write_shards(source_of("bytes"), tmp_path / "d", shards=1)
    with Stream(tmp_path / "d", "test", 25, 26) as stream:
        assert stream.samples == 0
        assert list(stream.blocks(5)) == []


def test_ranks_with_fewer_samples_than_minibatches(tmp_path: Path) -> None:
    write_shards(source_of("floats"), tmp_path / "d", shards=3, sizes=[1, 1, 20])
    part = read_partition(tmp_path / "d", "train", 0, 3)
    with Stream(tmp_path / "d", "train", 0, 3) as stream:
        batches = Batches(stream.samples, largest=80, batch=4, window=stream.window)
        stream.follow(batches)
        assert any(len(index) == 0 for index in batches.one_pass(0))
        check(stream, batches, part, 2 * batches.per_pass)


# --- memory ---


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


# --- damage ---


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


def test_shards_without_checksums_of_chunks(tmp_path: Path) -> None:
    write_shards(source_of("bytes"), tmp_path / "d", shards=1)
    path = tmp_path / "d" / "train-00000-of-00001.h5"
    with h5py.File(path, "r+") as file:
        del file["sums"], file.attrs["sums"]
    with refused(path.name, "no checksums", "shard"):
        Stream(tmp_path / "d", "train", 0, 1)


def test_chunks_too_large_to_be_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apts_mpi.data.minibatches import chunks

    write_shards(source_of("bytes"), tmp_path / "d", shards=1)
    monkeypatch.setattr(chunks, "LARGEST", 50)
    with refused("train-00000-of-00001.h5", "x has chunks of shape (16, 2, 3)"):
        Stream(tmp_path / "d", "train", 0, 1)


def test_misuse(tmp_path: Path) -> None:
    write_shards(source_of("bytes"), tmp_path / "d", shards=1)
    with pytest.raises(ValueError, match="context of 3"):
        Stream(tmp_path / "d", "train", 0, 1, context=3)
    with refused("91 ranks"):
        Stream(tmp_path / "d", "train", 0, 91)
    with refused("nowhere"):
        Stream(tmp_path / "nowhere", "train", 0, 1)


# --- the thread's end ---


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
        timeout=60,
        check=False,
    )
    assert run.returncode == {"pass": 0, "1 / 0": 1, "sys.exit(3)": 3}[end]
    assert ("ZeroDivisionError" in run.stderr) == (end == "1 / 0")
    assert "thread" not in run.stderr.lower()

"""The files that data come from: shards and their index, MNIST, CIFAR-10, the user's arrays."""

from __future__ import annotations

import functools
import gzip
import hashlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from apts_mpi.data import (
    Source,
    Stream,
    TextSource,
    describe,
    load_source,
    read_info,
    read_partition,
    write_shards,
)
from apts_mpi.data.minibatches.batches import Batches
from apts_mpi.data.shards import writing
from apts_mpi.data.sources import cifar, mnist

from .forged_archives import gz, idx_header, npz_archive, npz_member
from .forged_h5 import h5_forgeries
from .subject import Question, Subject, digest

# ---- shards ----------------------------------------------------------------------------------


def _make_shards(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, size=(49, 4)), np.arange(49) % 3
    write_shards(Source("toy", x[:40], y[:40], x[40:], y[40:], ("a", "b", "c")), folder, shards=2)


def _make_images(folder: Path) -> None:
    """Bytes in several chunks, with much black and white, as pictures have it."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, size=(150, 1, 8, 8)).astype(np.uint8)
    x[rng.random(x.shape) < 0.3], x[:, :, :3] = 255, 0
    y = np.arange(150) % 4 // 3
    source = Source("images", x[:120], y[:120], x[120:], y[120:], ("one", "two"))
    chunk, writing.CHUNK = writing.CHUNK, 1024
    try:
        write_shards(source, folder, shards=2)
    finally:
        writing.CHUNK = chunk


def _make_validated(folder: Path) -> None:
    """Targets with a validation split and moments of each channel."""
    rng = np.random.default_rng(6)
    x = rng.normal(3, 2, size=(60, 2, 3, 2)) * np.array([1.0, 50.0])[:, None, None]
    y = rng.normal(100, 9, size=(60, 2))
    parts = (x[:40], y[:40], x[40:49], y[40:49])
    val = {"x_val": x[49:], "y_val": y[49:]}
    write_shards(Source("points", *parts, task="regression", **val), folder, shards=2)


def _make_text(folder: Path) -> None:
    """Tokens in several chunks."""
    tokens = np.random.default_rng(5).integers(0, 9, size=4000).astype(np.uint8)
    tokens[500:900] = 0
    names = ("U+000A", *"abcdefgh")
    chunk, writing.CHUNK = writing.CHUNK, 512
    try:
        write_shards(TextSource("text", tokens[:3600], tokens[3600:], names), folder, shards=2)
    finally:
        writing.CHUNK = chunk


def _windows(split: str, rank: int, ranks: int, folder: Path) -> str:
    part = read_partition(folder, split, rank, ranks, context=16)
    return digest(part.x, part.y, part.start, part.total)


def _streamed(context: int | None, folder: Path) -> str:
    """A pass of minibatches, and the test split in blocks."""
    pieces: list[np.ndarray] = []
    with Stream(folder, "train", 0, 1, context=context, window=5) as stream:
        batches = Batches(stream.samples, largest=stream.samples, batch=8, window=5)
        stream.follow(batches)
        for _ in range(batches.per_pass):
            pieces += stream.take(next(batches))
    with Stream(folder, "test", 0, 1, context=context) as stream:
        for block in stream.blocks(8):
            pieces += block
    return digest(*pieces)


def _part(split: str, rank: int, ranks: int, folder: Path) -> str:
    part = read_partition(folder, split, rank, ranks)
    return digest(part.x, part.y, part.start, part.total)


SHARDS: dict[str, Question] = {
    "info": lambda folder: read_info(folder).digest,
    **{
        f"{split} {rank} of {ranks}": functools.partial(_part, split, rank, ranks)
        for split, ranks in (("train", 2), ("train", 3), ("test", 3))
        for rank in range(ranks)
    },
    "inspect": lambda folder: digest(describe(folder)),
}

SHARDS["streamed"] = functools.partial(_streamed, None)

VALIDATED = SHARDS | {
    f"val {rank} of 2": functools.partial(_part, "val", rank, 2) for rank in range(2)
}

TEXT: dict[str, Question] = {
    "info": lambda folder: read_info(folder).digest,
    **{
        f"{split} {rank} of {ranks}": functools.partial(_windows, split, rank, ranks)
        for split, ranks in (("train", 2), ("train", 3), ("test", 3))
        for rank in range(ranks)
    },
    "streamed": functools.partial(_streamed, 16),
    "inspect": lambda folder: digest(describe(folder)),
}

# ---- sources ---------------------------------------------------------------------------------


def _idx_contents() -> dict[str, bytes]:
    rng = np.random.default_rng(2)
    contents = {}
    for name, (dimensions, _) in mnist.FILES.items():
        samples = 30 if name.startswith("train") else 11
        shape = (samples, 28, 28)[:dimensions]
        data = rng.integers(0, 256 if dimensions == 3 else 10, size=shape).astype(np.uint8)
        head = bytes([0, 0, 8, dimensions]) + np.array(shape, dtype=">u4").tobytes()
        contents[name] = head + data.tobytes()
    return contents


def _make_idx(folder: Path, *, packed: bool) -> None:
    for name, content in _idx_contents().items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (folder / name).write_bytes(content)


def _source(name: str, folder: Path) -> str:
    path = folder
    if name.startswith("arrays"):
        path = folder / f"mine.{name.split()[1]}"
    found = load_source(name.split()[0], path=path)
    labels = [[found.classes[k] for k in y] for y in (found.y_train, found.y_test)]
    return digest(np.asarray(found.x_train), np.asarray(found.x_test), labels)


def _mnist(folder: Path) -> str:
    """With the checksums of the files made here in place of those of MNIST."""
    known = mnist.FILES
    mnist.FILES = {
        name: (known[name][0], hashlib.md5(content, usedforsecurity=False).hexdigest())
        for name, content in _idx_contents().items()
    }
    try:
        return _source("mnist", folder)
    finally:
        mnist.FILES = known


def _make_cifar(folder: Path) -> None:
    rng = np.random.default_rng(3)
    for name in (*cifar.TRAIN, cifar.TEST):
        records = rng.integers(0, 256, size=(3, cifar.RECORD)).astype(np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    (folder / cifar.NAMES).write_text("\n".join(f"class {k}" for k in range(10)) + "\n")


def _plain_cifar(folder: Path) -> str:
    parts = [(folder / name).read_bytes() for name in (*cifar.TRAIN, cifar.TEST)]
    names = [str(k) for k in range(10)]
    if (folder / cifar.NAMES).exists():
        text = (folder / cifar.NAMES).read_bytes()[:4096].decode()
        names = [line.strip() for line in text.splitlines() if line.strip()]
    pictures, labels = [], []
    for part in (b"".join(parts[:-1]), parts[-1]):
        rows = [part[k : k + cifar.RECORD] for k in range(0, len(part), cifar.RECORD)]
        pixels = np.frombuffer(b"".join(row[1:] for row in rows), dtype=np.uint8)
        pictures.append(pixels.reshape(-1, 3, 32, 32))
        labels.append([names[row[0]] for row in rows])
    return digest(*pictures, labels)


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {
        "x_train": rng.normal(size=(24, 3, 5)),
        "y_train": np.arange(24) % 3,
        "x_test": rng.normal(size=(9, 3, 5)),
        "y_test": np.arange(9) % 3,
        "classes": np.array([b"ant", b"bee", b"cat"]),
    }


def _make_npz(folder: Path, *, packed: bool) -> None:
    save: Any = np.savez_compressed if packed else np.savez
    save(folder / "mine.npz", **_arrays())


def _make_h5(folder: Path) -> None:
    with h5py.File(folder / "mine.h5", "w") as file:
        for name, data in _arrays().items():
            file[name] = data


def _plain_arrays(end: str, folder: Path) -> str:
    path = folder / f"mine.{end}"
    found: dict[str, Any] = {}
    if end == "h5":
        with h5py.File(path, "r") as file:
            found = {name: file[name][()] for name in _arrays() if name in file}
    else:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in _arrays() if name in archive.files}
    features = []
    for name in ("x_train", "x_test"):
        x = found[name]
        with np.errstate(over="ignore"):
            features.append(x if x.dtype == np.uint8 else x.astype("<f4"))
    names = found.get("classes")
    words = None if names is None else [n.decode() if isinstance(n, bytes) else n for n in names]
    labels = [
        [str(int(k)) if words is None else str(words[int(k)]) for k in found[name]]
        for name in ("y_train", "y_test")
    ]
    return digest(*features, labels)


# ---- all of them -----------------------------------------------------------------------------

_SHARD_FILES = ("t*.h5",)
_HEADER = {"forged header": idx_header}
DATA = (
    Subject("shards", _make_shards, _SHARD_FILES, SHARDS, h5_forgeries()),
    Subject("shards of images", _make_images, _SHARD_FILES, SHARDS, h5_forgeries()),
    Subject("shards with validation", _make_validated, _SHARD_FILES, VALIDATED, h5_forgeries()),
    Subject("shards of text", _make_text, _SHARD_FILES, TEXT, h5_forgeries()),
    Subject("index", _make_shards, ("index.h5",), SHARDS, h5_forgeries("apts-mpi-index")),
    Subject(
        "idx",
        functools.partial(_make_idx, packed=False),
        ("*ubyte",),
        {"source": _mnist},
        _HEADER,
    ),
    Subject(
        "idx gzipped",
        functools.partial(_make_idx, packed=True),
        ("*.gz",),
        {"source": _mnist},
        {**_HEADER, "forged gzip": gz},
    ),
    Subject(
        "cifar-10",
        _make_cifar,
        ("*.bin", "*.txt"),
        {"source": functools.partial(_source, "cifar10")},
        checked=False,
        plain=_plain_cifar,
    ),
    Subject(
        "npz",
        functools.partial(_make_npz, packed=False),
        ("*.npz",),
        {"source": functools.partial(_source, "arrays npz")},
        {"forged member": npz_member, "forged archive": npz_archive},
        plain=functools.partial(_plain_arrays, "npz"),
    ),
    Subject(
        "npz packed",
        functools.partial(_make_npz, packed=True),
        ("*.npz",),
        {"source": functools.partial(_source, "arrays npz")},
        {"forged archive": npz_archive},
        plain=functools.partial(_plain_arrays, "npz"),
    ),
    Subject(
        "arrays h5",
        _make_h5,
        ("*.h5",),
        {"source": functools.partial(_source, "arrays h5")},
        h5_forgeries(),
        checked=False,
        plain=functools.partial(_plain_arrays, "h5"),
    ),
)

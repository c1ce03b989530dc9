"""Archives, gzip and IDX files that are sound as their format has it, and strange."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .damage import Rng
from .subject import MARK


class Attack:
    """Pickled, it leaves the mark when it is read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self._folder / MARK), "w"))


_PLAIN = "{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}"


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    return stream.getvalue()


def _headed(header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An .npy file with any header."""
    text = header.encode("latin1", errors="replace")
    width = "<H" if version == b"\x01\x00" else "<I"
    return b"\x93NUMPY" + version + struct.pack(width, len(text)) + text + body


def npz_member(rng: Rng, path: Path) -> None:
    """One array of an archive replaced by something strange."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = str(rng.choice(sorted(members)))
    numbers = np.arange(24.0)
    objects = np.empty(2, dtype=object)
    objects[:] = [Attack(path.parent), Attack(path.parent)]
    strange: tuple[bytes, ...] = (
        _npy(objects),
        pickle.dumps(Attack(path.parent)),
        _headed(_PLAIN.format("'|O'", False, "(24,)"), pickle.dumps(Attack(path.parent))),
        _headed(_PLAIN.format("[('a', '|O')]", False, "(24,)"), bytes(192)),
        _headed(_PLAIN.format("'<f8'", False, "(1000000000000000, 4)")),
        _headed(_PLAIN.format("'<f8'", False, "(-1, 4)")),
        _headed(_PLAIN.format("'<f8'", False, "(-2, -12)"), numbers.tobytes()),
        _headed(_PLAIN.format("'<f8'", False, "(True, 24)"), numbers.tobytes()),
        _headed(_PLAIN.format("'<f8'", False, f"({2**64}, {2**64})")),
        _headed(_PLAIN.format("'<f8'", False, "(1000000000000000000, 0)")),
        _headed(_PLAIN.format("'V0'", False, "(1000000000000, 2)")),
        _headed(_PLAIN.format("'S0'", False, "(1000000000000,)")),
        _headed(_PLAIN.format("'<U100000000'", False, "(1,)")),
        _headed(_PLAIN.format("'<f8'", True, "(6, 4)"), numbers.tobytes()),
        _headed(_PLAIN.format("'>f8'", False, "(6, 4)"), numbers.tobytes()),
        _headed(_PLAIN.format("'<c16'", False, "(6, 2)"), numbers.tobytes()),
        _headed(_PLAIN.format("'<M8[s]'", False, "(6, 4)"), numbers.tobytes()),
        _headed(_PLAIN.format("('<f8', (4,))", False, "(6,)"), numbers.tobytes()),
        _headed(_PLAIN.format("[('a', '<f8')]", False, "(6, 4)"), numbers.tobytes()),
        _headed("{'descr': '<f8', 'fortran_order': False, 'shape': (24,)", numbers.tobytes()),
        _headed("{'descr': '<f8'"),
        _headed("(" * 5000),
        _headed("-" * 9000 + "1"),
        _headed("{" + "'a': " * 2000),
        _headed("'" * 3),
        _headed("[" * 60_000),
        _headed("__import__('os').getpid()"),
        _headed("1" * 9000),
        _headed("\x00\n\\"),
        _headed(_PLAIN.format("'<f8'", False, "(24,)"), numbers.tobytes(), b"\x03\x00"),
        _headed(_PLAIN.format("'<f8'", False, "(24,)"), numbers.tobytes(), b"\xff\xff"),
        _npy(np.zeros((24, 3, 5))),
        _npy(np.zeros((24, 3, 5), dtype="f2")),
        _npy(np.full((24, 3, 5), np.nan)),
        _npy(np.array([0, 1, 2**63] * 8, dtype="u8")),
        _npy(np.array([0.0, 1.0, 1e300] * 8)),
        _npy(np.array(["a\nb", "c", "d"])),
        _npy(np.array(["é", "c", "d"])),
        _npy(np.array([b"\xff", b"c", b"d"])),
        _npy(np.zeros((4096, 4096))),
        b"",
        b"\x93NUMPY",
    )
    members[name] = strange[rng.integers(len(strange))]
    packing = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(path, "w", packing[rng.integers(len(packing))]) as archive:
        for each, content in members.items():
            archive.writestr(each, content)


def npz_archive(rng: Rng, path: Path) -> None:
    """An archive with strange members: a bomb, one twice or ever so often, packed and damaged."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = str(rng.choice(sorted(members)))
    kind = int(rng.integers(8))
    packing = (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED)[kind % 3]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for each, content in members.items():
            if kind == 0 and each == name:
                content = _headed(_PLAIN.format("'<f8'", False, "(16384, 16384)"), bytes(2**25))
            archive.writestr(each, content)
        for _ in range((0, 1, 3000)[min(kind, 2)] if kind < 3 else 0):
            archive.writestr(name, _npy(np.zeros((24, 3, 5))))
    bad = bytearray(stream.getvalue())
    if kind >= 3:  # in what is packed, or in its head
        place = bad.find(name.encode())
        for _ in range(int(rng.integers(1, 4))):
            bad[max(place + int(rng.integers(-30, 120)), 0)] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(bad))


def gz(rng: Rng, path: Path) -> None:
    """A gzip file that holds much more, or holds it strangely."""
    good = gzip.decompress(path.read_bytes())
    kind = int(rng.integers(7))
    if kind == 0:
        content = gzip.compress(good + bytes(2**27))
    elif kind == 1:
        content = gzip.compress(good[:4] + b"\xff" * (len(good) - 4))
    elif kind == 2:
        content = gzip.compress(gzip.compress(good))
    elif kind == 3:
        content = b"".join(gzip.compress(good[k : k + 100]) for k in range(0, len(good), 100))
    elif kind == 4:
        content = gzip.compress(good) + bytes(int(rng.integers(1, 600)))
    elif kind == 5:
        content = b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 100_000
    else:
        content = gzip.compress(good)[:-8] + struct.pack("<II", zlib.crc32(good) ^ 1, len(good))
    path.write_bytes(content)


def idx_header(rng: Rng, path: Path) -> None:
    """Another shape in the header, with data to fit or not."""
    packed = path.suffix == ".gz"
    good = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    dimensions = good[3]
    sizes = [int(rng.choice((0, 1, 28, 2**16, 2**31, 2**32 - 1))) for _ in range(dimensions)]
    bad = good[:4] + np.array(sizes, dtype=">u4").tobytes() + good[4 + 4 * dimensions :]
    path.write_bytes(gzip.compress(bad) if packed else bad)

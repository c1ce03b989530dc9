"""Ways to damage the bytes of a file that know nothing of its format."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

Rng = np.random.Generator
Bytes = Callable[[Rng, bytes, bytes], bytes]  # of good bytes and those of a file of its kind

_EXTREMES = (0, 1, -1, 2**7 - 1, 2**15 - 1, 2**31 - 1, 2**63 - 1, -(2**31), -(2**63), 2**40)
_BLOCKS = (1, 4, 16, 64, 512, 4096)


def _place(rng: Rng, good: bytes) -> int:
    """Anywhere, but as often near the start, where most of the structure is."""
    end = max(len(good), 1)
    return int(rng.integers(end if rng.random() < 0.5 else min(end, 1024)))


def _block(rng: Rng, good: bytes) -> tuple[int, int]:
    """First and one-past-last byte of a block, at a multiple of its size every other time."""
    size = int(rng.choice(_BLOCKS)) if rng.random() < 0.7 else int(rng.integers(1, len(good) + 2))
    start = _place(rng, good)
    if rng.random() < 0.5:
        start -= start % size
    return start, min(start + size, len(good))


def flip_bit(rng: Rng, good: bytes, other: bytes) -> bytes:
    bad, at = bytearray(good), _place(rng, good)
    if bad:
        bad[at] ^= 1 << int(rng.integers(8))
    return bytes(bad)


def flip_bits(rng: Rng, good: bytes, other: bytes) -> bytes:
    for _ in range(int(rng.integers(2, 33))):
        good = flip_bit(rng, good, other)
    return good


def overwrite(rng: Rng, good: bytes, other: bytes) -> bytes:
    start, stop = _block(rng, good)
    return good[:start] + rng.bytes(stop - start) + good[stop:]


def zero(rng: Rng, good: bytes, other: bytes) -> bytes:
    start, stop = _block(rng, good)
    return good[:start] + bytes(stop - start) + good[stop:]


def ones(rng: Rng, good: bytes, other: bytes) -> bytes:
    start, stop = _block(rng, good)
    return good[:start] + b"\xff" * (stop - start) + good[stop:]


def lose_long_block(rng: Rng, good: bytes, other: bytes) -> bytes:
    """Zeros from anywhere for a large part of the file, as after a lost write."""
    start = int(rng.integers(len(good) + 1))
    stop = int(rng.integers(start, len(good) + 1))
    return good[:start] + bytes(stop - start) + good[stop:]


def truncate(rng: Rng, good: bytes, other: bytes) -> bytes:
    ends = [0, len(good) - 1, len(good) // 512 * 512, len(good) // 4096 * 4096]
    end = int(rng.choice(ends)) if rng.random() < 0.2 else _place(rng, good)
    return good[: max(end, 0)]


def lengthen(rng: Rng, good: bytes, other: bytes) -> bytes:
    size = int(rng.choice((1, 7, 512, 4096)))
    return good + (bytes(size) if rng.random() < 0.5 else rng.bytes(size))


def insert(rng: Rng, good: bytes, other: bytes) -> bytes:
    at, size = _place(rng, good), int(rng.choice((1, 2, 8, 512)))
    return good[:at] + rng.bytes(size) + good[at:]


def delete(rng: Rng, good: bytes, other: bytes) -> bytes:
    start, stop = _block(rng, good)
    return good[:start] + good[stop:]


def repeat(rng: Rng, good: bytes, other: bytes) -> bytes:
    start, stop = _block(rng, good)
    return good[:stop] + good[start:]


def swap_blocks(rng: Rng, good: bytes, other: bytes) -> bytes:
    (a, b), (c, d) = sorted((_block(rng, good), _block(rng, good)))
    b = min(b, c)
    return good[:a] + good[c:d] + good[b:c] + good[a:b] + good[d:]


def piece_of_another(rng: Rng, good: bytes, other: bytes) -> bytes:
    start, stop = _block(rng, good)
    return good[:start] + other[start:stop] + good[stop:]


def head_of_another(rng: Rng, good: bytes, other: bytes) -> bytes:
    at = _place(rng, good)
    return other[:at] + good[at:]


def another(rng: Rng, good: bytes, other: bytes) -> bytes:
    return other


def extreme_number(rng: Rng, good: bytes, other: bytes) -> bytes:
    size = int(rng.choice((1, 2, 4, 8)))
    value = int(rng.choice(_EXTREMES)) + int(rng.integers(-2, 3))
    at = _place(rng, good)
    at -= at % size * int(rng.integers(2))
    number = (value % 2 ** (8 * size)).to_bytes(size, "little" if rng.random() < 0.5 else "big")
    return good[:at] + number + good[at + size :]


def garbage(rng: Rng, good: bytes, other: bytes) -> bytes:
    return rng.bytes(int(rng.integers(0, 5000)))


def garbage_behind_head(rng: Rng, good: bytes, other: bytes) -> bytes:
    head = int(rng.choice((4, 8, 64, 520, 600)))
    return good[:head] + rng.bytes(int(rng.integers(0, 5000)))


DAMAGES: dict[str, Bytes] = {
    function.__name__.replace("_", " "): function
    for function in (
        flip_bit,
        flip_bits,
        overwrite,
        zero,
        ones,
        lose_long_block,
        truncate,
        lengthen,
        insert,
        delete,
        repeat,
        swap_blocks,
        piece_of_another,
        head_of_another,
        another,
        extreme_number,
        garbage,
        garbage_behind_head,
    )
}


OVERSIZE = 300 * 2**20  # bytes; more than a reader may hold


def oversized(rng: Rng, path: Path) -> None:
    """Hundreds of megabytes of zeros behind the end, which take no room on the disk."""
    os.truncate(path, path.stat().st_size + OVERSIZE + int(rng.integers(2)))


def no_file(rng: Rng, path: Path, *, pipe: bool = True) -> None:
    """Nothing, or something that is no file, in its place."""
    path.unlink()
    kind = int(rng.integers(7))
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        if pipe:
            os.mkfifo(path)
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        path.symlink_to("/dev/null")
    elif kind == 5:
        path.symlink_to("nowhere")
    elif kind == 6:
        path.symlink_to("/dev/zero")

"""Samples that stay in their files: read in their order, a block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 32 * 2**20  # bytes that are read at a time, or one row

Array = NDArray[Any]


class Stored:
    """Rows (n, ...) in files, which are read when they are needed and never held whole.

    Like an array it has `shape`, `dtype` and a length, and ``x[rows]`` is the part of it with
    these rows, a slice or rising numbers (m,), which is not read either. `numpy.asarray` reads it.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        read: Callable[[], Iterator[Array]],
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """`read` gives all rows of the files in blocks; of those only `rows` belong to it."""
        self.read, self.rows = read, rows
        self.shape = shape if rows is None else (len(rows), *shape[1:])
        self.dtype = dtype

    @property
    def ndim(self) -> int:
        """Dimensions, that of the rows included."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Stored:
        known = np.arange(len(self)) if self.rows is None else self.rows
        return Stored(self.shape, self.dtype, self.read, known[rows])

    def blocks(self) -> Iterator[Array]:
        """Its rows in their order, (m, ...) at a time."""
        start = 0
        for block in self.read():
            if self.rows is None:
                yield block
            else:
                first, last = np.searchsorted(self.rows, (start, start + len(block)))
                yield block[self.rows[first:last] - start]
            start += len(block)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("what is stored in files must be copied to be an array")
        whole = np.empty(self.shape, dtype=dtype or self.dtype)
        start = 0
        for block in self.blocks():
            whole[start : start + len(block)] = block
            start += len(block)
        return whole

    def mapped(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], change: Callable[[Array, int], Array]
    ) -> Stored:
        """The same rows, each block of which, with the number of its first row, is changed."""

        def read() -> Iterator[Array]:
            start = 0
            for block in self.blocks():
                yield change(block, start)
                start += len(block)

        return Stored(shape, dtype, read)


def rows_of_block(row: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """How many rows of a shape make a block."""
    return max(1, BLOCK // max(1, math.prod(row) * dtype.itemsize))

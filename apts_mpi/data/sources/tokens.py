"""The tokens of texts that stay in their files, a piece of which is decoded at a time."""

from __future__ import annotations

from bisect import bisect_right
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apts_mpi.errors import fault

PIECE = 256 * 1024  # bytes of a file that are decoded together
SEPARATOR = b"\n"  # between the files of a folder
_UNICODE = 0x110000  # code points

Tokens = NDArray[Any]


class Piece(NamedTuple):
    """Bytes of a file, or the separator where there is no path; and how many tokens these are."""

    path: Path | None
    offset: int
    size: int
    tokens: int


class StoredTokens:
    """Tokens (n,) of a text; ``tokens[a:b]`` is a part, not read either. `numpy.asarray` reads it.

    They are bytes, or characters by their place in the sorted ones of the text.
    """

    def __init__(self, pieces: Sequence[Piece], known: NDArray[np.int64] | None) -> None:
        """`known` are the code points in their order; None for bytes."""
        self._pieces, self._table = pieces, None
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        if known is not None:
            self.dtype = np.dtype(np.uint8 if len(known) <= 256 else "<i4")
            self._table = np.zeros(_UNICODE, dtype=self.dtype)
            self._table[known] = np.arange(len(known))
        self._ends = np.cumsum([piece.tokens for piece in pieces], dtype=np.int64)
        self._start, self._stop = 0, int(self._ends[-1]) if pieces else 0

    def __len__(self) -> int:
        return self._stop - self._start

    @property
    def shape(self) -> tuple[int]:
        """(n,)"""
        return (len(self),)

    def __getitem__(self, tokens: slice) -> StoredTokens:
        start, stop, step = tokens.indices(len(self))
        if step != 1:
            raise ValueError("a part of a text is without gaps")
        part = object.__new__(StoredTokens)
        part.__dict__.update(self.__dict__)
        part._start, part._stop = self._start + start, self._start + max(start, stop)
        return part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Tokens:
        if copy is False:
            raise ValueError("what is stored in files must be copied to be an array")
        whole = np.empty(len(self), dtype=dtype or self.dtype)
        at = bisect_right(self._ends, self._start)
        place = self._start
        while place < self._stop:
            piece, end = self._pieces[at], int(self._ends[at])
            found = self._tokens(piece)[place - end + piece.tokens :][: self._stop - place]
            whole[place - self._start :][: len(found)] = found
            place, at = end, at + 1
        return whole

    def _tokens(self, piece: Piece) -> Tokens:
        raw = _read(piece)
        if self._table is None:
            return np.frombuffer(raw, dtype=np.uint8)
        try:
            codes = _codes(raw.decode("utf-8"))
        except UnicodeDecodeError:
            codes = np.empty(0, np.uint32)
        if len(codes) != piece.tokens:
            raise _changed(piece)
        return self._table[codes]


def read_tokens(files: Sequence[Path], *, characters: bool) -> tuple[StoredTokens, Tokens]:
    """The tokens of files, joined, and the code points of their characters, or all bytes.

    Raises InputError where a file cannot be read, or is not UTF-8.
    """
    seen = np.zeros(_UNICODE, dtype=bool)
    pieces: list[Piece] = []
    for k, path in enumerate(files):
        if k:
            pieces.append(Piece(None, 0, len(SEPARATOR), len(SEPARATOR)))
            seen[list(SEPARATOR)] = True
        try:
            with path.open("rb") as file:
                # Editors put a mark before UTF-8, which is none of its characters.
                marked = characters and file.read(len(BOM_UTF8)) == BOM_UTF8
                offset = len(BOM_UTF8) if marked else 0
                file.seek(offset)
                while raw := file.read(PIECE):
                    many = len(raw)
                    if characters:
                        raw, text = _decoded(path, raw, offset)
                        codes = _codes(text)
                        seen[codes], many = True, len(codes)
                    pieces.append(Piece(path, offset, len(raw), many))
                    offset += len(raw)
                    file.seek(offset)
        except OSError as exc:
            what = f"cannot be read ({exc.strerror})"
            raise fault(path, what, "mend it, or leave it out") from exc
    known = np.flatnonzero(seen) if characters else np.arange(256)
    return StoredTokens(pieces, known if characters else None), known


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _decoded(path: Path, raw: bytes, offset: int) -> tuple[bytes, str]:
    """The bytes without a character that may continue behind them, and their text."""
    try:
        return raw, raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        cut = exc.start
        if not (len(raw) == PIECE and exc.end == len(raw) and cut > len(raw) - 4):
            remedy = "convert it, or take bytes with --level byte"
            raise fault(path, f"is not UTF-8 (byte {offset + cut})", remedy) from exc
    return raw[:cut], raw[:cut].decode("utf-8")


def _read(piece: Piece) -> bytes:
    if piece.path is None:
        return SEPARATOR
    try:
        with piece.path.open("rb") as file:
            file.seek(piece.offset)
            raw = file.read(piece.size)
    except OSError as exc:
        what = f"cannot be read ({exc.strerror})"
        raise fault(piece.path, what, "mend it, or leave it out") from exc
    if len(raw) != piece.size:
        raise _changed(piece)
    return raw


def _changed(piece: Piece) -> Exception:
    return fault(piece.path or "", "has changed while it was read", "make the shards again")

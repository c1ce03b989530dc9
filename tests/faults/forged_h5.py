"""HDF5 files changed through HDF5 itself, so that all its own checksums are right again.

What is deeper than checksums must refuse them too, or take them for what they say; none may crash,
hang, run code or take memory that the file is not worth.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from apts_mpi.files import sealed

from .damage import Rng
from .subject import Forgery

_VALUES: tuple[Any, ...] = (
    0, 1, -1, 2**31, 2**62, -(2**63), 1.5, float("nan"), True, "text", "", "text\nof lines",
    np.bytes_(b"text"), np.bytes_(b"\xff\xfe"), np.bytes_(b"a" * 60000), np.empty(0, "i8"),
    np.arange(3), np.arange(3.0), np.zeros((2, 2), "i8"), np.array([b"a", b"b"]), h5py.Empty("f"),
    np.array([b"a\nb", b"c"]), np.zeros(5000, "S8"), np.array((1, 2.0), dtype="i4,f8"),
    np.full(6000, 2**62), 1j, np.bytes_(b"apts-mpi-index"), [2**62, 2**62], np.uint64(2**64 - 1),
)  # fmt: skip


def _datasets(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if hasattr(item, "shape") else None)
    return sorted(found)


def h5_attribute(rng: Rng, file: h5py.File) -> None:
    """One attribute gone, new, or of another type."""
    names = [*sorted(file.attrs), "new"]
    name = names[rng.integers(len(names))]
    file.attrs.pop(name, None)
    if rng.random() < 0.8:
        file.attrs[name] = _VALUES[rng.integers(len(_VALUES))]


def h5_values(rng: Rng, file: h5py.File) -> None:
    """Other values in a data set."""
    name = str(rng.choice(_datasets(file)))
    data = file[name]
    if data.size and data.shape and data.dtype.kind in "iuf" and not data.is_virtual:
        at = tuple(int(rng.integers(n)) for n in data.shape)
        extremes = (0, 1, 255, -1, 2**31, 1e300, float("nan"), float("inf"), 2**62)
        value = extremes[rng.integers(len(extremes))]
        with np.errstate(all="ignore"):
            data[at] = np.array(value, dtype="f8").astype(data.dtype)


def h5_dataset(rng: Rng, file: h5py.File) -> None:
    """A data set of another shape, type or layout, or something else in its place."""
    name = str(rng.choice(_datasets(file)))
    old = file[name]
    shape, dtype = old.shape or (3,), old.dtype
    del file[name]
    huge = (10**15, *shape[1:])
    one = 1 if dtype.kind in "iuf" else None
    small = np.zeros(tuple(min(n, 50) for n in shape), "f4")
    wholes: tuple[dict[str, Any], ...] = (
        {"shape": huge, "dtype": dtype, "chunks": (1, *shape[1:])},
        {"shape": huge, "dtype": dtype, "chunks": (1, *shape[1:]), "fletcher32": True},
        {"shape": (2**40, *shape[1:]), "dtype": dtype, "chunks": (2**20 // len(shape), *shape[1:])},
        {"shape": shape, "dtype": dtype},
        {"shape": (0, *shape[1:]), "dtype": dtype},
        {"shape": (), "dtype": dtype},
        {"shape": (4096, 4096), "dtype": "f8", "compression": "gzip", "chunks": (512, 4096)},
        {"shape": shape, "dtype": dtype, "fillvalue": one, "chunks": True, "fletcher32": True},
        {"shape": shape, "dtype": dtype, "maxshape": tuple(None for _ in shape)},
        {"data": small, "compression": "gzip"},
        {"data": small, "compression": "lzf"},
        {"data": small, "shuffle": True},
        {"data": np.zeros(3, "S10")},
        {"data": np.zeros((1,) * 32, "u1")},
        {"data": h5py.Empty("f4")},
        {"data": "text"},
        {"shape": shape, "dtype": ">f8"},
        {"shape": shape, "dtype": "f2"},
        {"shape": shape, "dtype": "c16"},
        {"shape": shape, "dtype": "?"},
        {"shape": shape, "dtype": "S1000000"},
        {"shape": shape, "dtype": np.dtype("i4,f8")},
        {"shape": shape, "dtype": np.dtype(("f8", (100, 100)))},
        {"shape": shape, "dtype": h5py.ref_dtype},
        {"shape": shape, "dtype": h5py.vlen_dtype(np.int64)},
        {"shape": shape, "dtype": h5py.enum_dtype({"A": 1})},
        {"shape": shape, "dtype": h5py.opaque_dtype(np.dtype("datetime64[s]"))},
        {"shape": shape, "dtype": dtype, "external": [("outside.raw", 0, h5py.h5f.UNLIMITED)]},
        {"shape": shape, "dtype": dtype, "external": [("/dev/zero", 0, h5py.h5f.UNLIMITED)]},
    )
    kind = int(rng.integers(len(wholes) + 6))
    if kind < len(wholes):
        new = file.create_dataset(name, **wholes[kind])
        if kind == 6:
            new[:512] = 0.0
    elif kind == len(wholes):
        file[name] = h5py.SoftLink("/x")
    elif kind == len(wholes) + 1:
        file[name] = h5py.SoftLink(f"/{name}")
    elif kind == len(wholes) + 2:
        file[name] = h5py.ExternalLink("outside.h5", "x")
    elif kind == len(wholes) + 3:
        file.create_group(name)[name.replace("/", "-")] = file["/"]
    elif kind == len(wholes) + 4:
        layout = h5py.VirtualLayout(shape=shape, dtype=dtype)
        layout[...] = h5py.VirtualSource("outside.h5", "x", shape=shape)
        file.create_virtual_dataset(name, layout)
    else:
        file[name] = np.dtype("f8")


def _h5(change: Callable[[Rng, h5py.File], None], seal: str | None) -> Forgery:
    def forge(rng: Rng, path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(rng, file)
        if seal:
            sealed.seal(path, seal)

    return forge


def h5_forgeries(seal: str | None = None) -> dict[str, Forgery]:
    """Changes made through HDF5, sealed anew where files of that kind are sealed."""
    changes = {"attribute": h5_attribute, "values": h5_values, "data set": h5_dataset}
    return {f"forged {name}": _h5(change, seal) for name, change in changes.items()}


def resealed(kind: str, damage: Callable[[Rng, bytes, bytes], bytes]) -> Forgery:
    """Damage to the bytes under a seal that is made anew."""

    def forge(rng: Rng, path: Path) -> None:
        good = path.read_bytes()
        path.write_bytes(good[: sealed.SIZE] + damage(rng, good[sealed.SIZE :], b""))
        sealed.seal(path, kind)

    return forge

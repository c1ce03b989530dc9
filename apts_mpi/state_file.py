"""A state, nested dictionaries of tensors and plain values, as one sealed HDF5 file.

The data set `state` holds the state as JSON text (uint8), in which a tensor is replaced by its
place in the group `arrays`. No pickle: to read a file never runs code.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from apts_mpi import sealed
from apts_mpi.data.format import LIBVER, fault, is_inside, opened

State = dict[str, Any]

KIND = "apts-mpi-state"
REMEDY = "take another checkpoint"
_MOST = 2**53  # counts and seconds are far below it, and sums of them exact
_ARRAY = "__array__"  # the key that stands for a tensor in the JSON text
_DTYPES = ("<f4", "<f8", "<i8", "|u1")


def write_state(path: Path, state: State) -> int:
    """Write a state beside its name, flush it to the disk and rename it; returns its bytes.

    The file is put together in memory: HDF5 does not end well on a disk that is full.

    Args:
        state: string keys; values are tensors (float32, float64, int64, uint8), numbers, strings,
            None, lists or dictionaries of them. Lists hold no tensors.

    Raises:
        OSError: it cannot be written; what had the name before is untouched.
    """
    image = io.BytesIO()
    with h5py.File(image, "w", libver=LIBVER, userblock_size=sealed.SIZE) as file:
        tree = _pack(state, file.create_group("arrays"))
        text = json.dumps(tree).encode()
        file.create_dataset("state", data=np.frombuffer(text, dtype=np.uint8))
    content = image.getbuffer()[sealed.SIZE :]
    sealed.write(path, sealed.seal_line(KIND, content), content)
    return sealed.SIZE + len(content)


def _pack(state: State, arrays: h5py.Group) -> State:
    tree: State = {}
    for name, value in state.items():
        if isinstance(value, dict):
            tree[name] = _pack(value, arrays)
        elif isinstance(value, Tensor):
            # A network's own names may have anything in them, so that places are numbers.
            data = value.detach().cpu().contiguous().numpy()
            tree[name] = {_ARRAY: arrays.create_dataset(str(len(arrays)), data=data).name}
        else:
            tree[name] = value
    return tree


def read_state(path: Path) -> State:
    """Read what ``write_state`` wrote, tensors on the CPU, after its checksum has been verified.

    Raises:
        InputError: the file is missing, unreadable, damaged, or no such file.
    """
    check(path)
    with opened(path, REMEDY) as file:
        return _Reading(file, path).state()


class _Reading:
    """A file that is read; its arrays may not claim more than it has, all of them together."""

    def __init__(self, file: h5py.File, path: Path) -> None:
        self._file, self._path = file, path
        self._left = path.stat().st_size

    def state(self) -> State:
        text = self._array("state", ("|u1",))
        try:
            tree = json.loads(text.numpy().tobytes())
        except (ValueError, RecursionError) as error:
            raise fault(self._path, f"is damaged ({error})", REMEDY) from None
        if not isinstance(tree, dict):
            raise fault(self._path, "holds no state", REMEDY)
        return self._unpack(tree)

    def _unpack(self, tree: State) -> State:
        state: State = {}
        for name, value in tree.items():
            self._check(name)
            if not isinstance(value, dict):
                self._check(value)
                state[name] = value
            elif set(value) == {_ARRAY}:
                state[name] = self._array(str(value[_ARRAY]).removeprefix("/"), _DTYPES)
            else:
                state[name] = self._unpack(value)
        return state

    def _check(self, value: Any) -> None:
        """Refuse numbers and texts that nothing here writes, and that fail where they are used."""
        if isinstance(value, (list, dict)):
            for each in [*value, *value.values()] if isinstance(value, dict) else value:
                self._check(each)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise fault(self._path, "holds a number of too many digits", REMEDY)
        elif isinstance(value, str):
            value.encode()  # JSON can name signs that are none

    def _array(self, name: str, dtypes: tuple[str, ...]) -> Tensor:
        """A data set as a tensor, once its type, layout and claimed size have been checked."""
        data = self._file[name] if is_inside(self._file, name) else None
        if not isinstance(data, h5py.Dataset) or data.dtype.str not in dtypes:
            what = f"has no data set {name[:80]!r} of type {' or '.join(dtypes)}"
            raise fault(self._path, what, REMEDY)
        plist = data.id.get_create_plist()
        layouts = (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
        if plist.get_layout() not in layouts or plist.get_external_count() or data.shape is None:
            what = f"{name[:80]} has a storage layout that this format does not use"
            raise fault(self._path, what, REMEDY)
        claimed = math.prod(data.shape) * data.dtype.itemsize
        self._left -= claimed
        if claimed > data.id.get_storage_size() or self._left < 0:
            raise fault(
                self._path, f"{name[:80]} claims {claimed} bytes, more than are left", REMEDY
            )
        return torch.from_numpy(np.asarray(data[()]))


def check(path: Path) -> None:
    """Compare a file with its checksum, reading nothing else of it; InputError where it fails."""
    try:
        whole = path.is_file() and sealed.unbroken(path, KIND)
    except OSError as error:
        raise fault(path, f"cannot be read ({error.strerror})", REMEDY) from error
    if not path.is_file():
        raise fault(path, "is missing", REMEDY)
    if not whole:
        raise fault(path, "is damaged (it does not match its checksum)", REMEDY)


# ---- what a state may hold ---------------------------------------------------------------------


def is_count(value: Any) -> bool:
    """A whole number from 0 up."""
    return type(value) is int and 0 <= value < _MOST


def is_real(value: Any) -> bool:
    """A number, perhaps NaN or infinite."""
    return type(value) in (int, float)


def is_amount(value: Any) -> bool:
    """A finite number from 0 up."""
    return is_real(value) and 0 <= value < _MOST


def is_word(value: Any) -> bool:
    """Text for one line; tabs are in the name of an MPI library."""
    return isinstance(value, str) and value.replace("\t", " ").isprintable()


def is_finite(value: Any) -> bool:
    """A tensor without NaN and infinity."""
    return isinstance(value, Tensor) and bool(value.isfinite().all())


def is_flag(value: Any) -> bool:
    """True or False."""
    return isinstance(value, bool)


def every(kind: Callable[[Any], bool], of: type = list) -> Callable[[Any], bool]:
    """Whether a value is a list of such, or a dictionary of such by words."""

    def check(value: Any) -> bool:
        if not isinstance(value, of):
            return False
        each: Any = value
        if of is dict:
            return all(map(is_word, each)) and all(map(kind, each.values()))
        return all(map(kind, each))

    return check


def misshapen(state: Any, form: Mapping[str, Any], *, whole: bool = True) -> str | None:
    """The name of the first entry that is not as its form has it; None where all are.

    Args:
        form: by name, a function of a value that tells whether it is right, or the form of a
            dictionary. whole: whether all of the form has to be there; what it does not name may
            be anything.
    """
    for name, kind in form.items():
        if not isinstance(state, dict) or name not in state:
            if whole or not isinstance(state, dict):
                return name
        elif callable(kind):
            if not kind(state[name]):
                return name
        elif (inner := misshapen(state[name], kind, whole=whole)) is not None:
            return f"{name}.{inner}"
    return None

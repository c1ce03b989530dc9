"""A state, nested dictionaries of tensors and plain values, as one sealed HDF5 file.

The data set `state` holds the state as JSON text (uint8), in which a tensor is replaced by its
place in the group `arrays`. Tensors of types that HDF5 or numpy lack are stored as their bytes,
and their type is named in the text. No pickle: to read a file never runs code.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from apts_mpi.errors import fault
from apts_mpi.files import sealed
from apts_mpi.files.forms import as_bytes
from apts_mpi.files.hdf5 import LIBVER, is_inside, opened

State = dict[str, Any]

KIND = "apts-mpi-state"
REMEDY = "take another checkpoint"
_ARRAY = "__array__"  # the key that stands for a tensor in the JSON text
_DTYPE = "dtype"  # the key beside it, of a tensor that is stored as bytes
_DTYPES = ("<f4", "<f8", "<i8", "|u1")
_AS_THEY_ARE = (torch.float32, torch.float64, torch.int64, torch.uint8)
# Of torch's own names; which of them there are depends on its version.
_AS_BYTES = {
    name: dtype
    for name, dtype in vars(torch).items()
    if isinstance(dtype, torch.dtype) and str(dtype) == f"torch.{name}"
    if not name.startswith(("q", "bits"))
}
_HEAD = 64  # numbers of a tensor that a rehearsal writes


class Unwritable(ValueError):
    """A state holds what cannot be written so that it is read as it was; the line names it."""


def write_state(path: Path, state: State) -> int:
    """Write a state beside its name, flush it to the disk and rename it; returns its bytes.

    The file is put together in memory: HDF5 does not end well on a disk that is full.

    Args:
        state: string keys; values are tensors, dense and of any type but quantized ones, numbers,
            strings, None, lists or dictionaries of them.

    Raises:
        OSError: it cannot be written; what had the name before is untouched.
        Unwritable: a value is none of these; nothing is written.
    """
    image = io.BytesIO()
    _put_together(image, state, lambda tensor: tensor)
    content = image.getbuffer()[sealed.SIZE :]
    sealed.write(path, sealed.seal_line(KIND, content), content)
    return sealed.SIZE + len(content)


def to_bytes(state: State) -> bytes:
    """A state as bytes, to be sent; ``from_bytes`` gives it back."""
    image = io.BytesIO()
    _put_together(image, state, lambda tensor: tensor)
    return image.getvalue()


def from_bytes(data: bytes) -> State:
    """The state that ``to_bytes`` made these bytes of."""
    with h5py.File(io.BytesIO(data)) as file:
        return _Reading(file, Path("a state"), len(data)).state()


def rehearsed(state: State) -> State:
    """What reading gives of what writing makes of a state, in memory; of tensors the first numbers.

    Raises:
        Unwritable: it holds a value that cannot be written.
        InputError: what would be written cannot be read.
    """
    image = io.BytesIO()
    _put_together(image, state, lambda t: t.flatten()[:_HEAD] if t.numel() > _HEAD else t)
    with h5py.File(image) as file:
        return _Reading(file, Path("a checkpoint"), image.getbuffer().nbytes).state()


def _put_together(image: io.BytesIO, state: State, cut: Callable[[Tensor], Tensor]) -> None:
    with h5py.File(image, "w", libver=LIBVER, userblock_size=sealed.SIZE) as file:
        tree = _pack(state, file.create_group("arrays"), cut, "")
        text = json.dumps(tree).encode()
        file.create_dataset("state", data=np.frombuffer(text, dtype=np.uint8))


def _pack(value: Any, arrays: h5py.Group, cut: Callable[[Tensor], Tensor], where: str) -> Any:
    """A value as JSON takes it, its tensors put into the group; ``where`` names it."""
    if isinstance(value, Tensor):
        data = _stored(value, cut, where)
        # A network's own names may have anything in them, so that places are numbers.
        place = {_ARRAY: arrays.create_dataset(str(len(arrays)), data=data.numpy()).name}
        return place if value.dtype in _AS_THEY_ARE else {**place, _DTYPE: _name(value.dtype)}
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str) or name == _ARRAY or _unlike(name):
                raise Unwritable(
                    f"{where or 'a state'} has the key {name!r:.80}; keys must be other text"
                )
        inner = f"{where}." if where else ""
        return {name: _pack(each, arrays, cut, inner + name) for name, each in value.items()}
    if type(value) is list:
        return [_pack(each, arrays, cut, f"{where}[{k}]") for k, each in enumerate(value)]
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise Unwritable(
            f"{where} is a {type(value).__name__}; what is saved may be tensors, numbers, text, "
            "None, and lists and dictionaries of them"
        )
    if what := _unlike(value):
        raise Unwritable(f"{where} {what}")
    return value


def _stored(tensor: Tensor, cut: Callable[[Tensor], Tensor], where: str) -> Tensor:
    """A tensor as numpy knows it: itself, or its bytes."""
    try:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
            kind = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
            raise TypeError(f"is {kind}")
        dense = cut(tensor.detach()).cpu().contiguous()
        return dense if tensor.dtype in _AS_THEY_ARE else as_bytes(dense)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        what = str(error) if isinstance(error, TypeError) else f"cannot be read ({error})"
        raise Unwritable(
            f"{where} {' '.join(what.split())[:200]}; only tensors that hold all their numbers can "
            "be saved: make it dense, or keep it out of the state"
        ) from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def read_state(path: Path) -> State:
    """Read what ``write_state`` wrote, tensors on the CPU, after its checksum has been verified.

    Raises:
        InputError: the file is missing, unreadable, damaged, or no such file.
    """
    check(path)
    with opened(path, REMEDY) as file:
        return _Reading(file, path, path.stat().st_size).state()


def _unlike(value: Any) -> str | None:
    """What is wrong with a number or text that JSON would take, but not give back alike."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "holds a number of too many digits"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can name signs that are none
            return f"holds text that is none ({error.reason})"
    return None


class _Reading:
    """A file that is read; its arrays may not claim more than it has, all of them together."""

    def __init__(self, file: h5py.File, path: Path, size: int) -> None:
        self._file, self._path, self._left = file, path, size

    def state(self) -> State:
        text = self._array("state", ("|u1",))
        try:
            tree = json.loads(text.numpy().tobytes())
            if isinstance(tree, dict):
                return {name: self._unpack(each) for name, each in self._named(tree)}
        except (ValueError, RecursionError) as error:
            raise fault(self._path, f"is damaged ({error})", REMEDY) from None
        raise fault(self._path, "holds no state", REMEDY)

    def _unpack(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._unpack(each) for each in value]
        if not isinstance(value, dict):
            return self._checked(value)
        if set(value) == {_ARRAY}:
            return self._array(str(value[_ARRAY]).removeprefix("/"), _DTYPES)
        if set(value) == {_ARRAY, _DTYPE}:
            return self._of_bytes(str(value[_ARRAY]).removeprefix("/"), value[_DTYPE])
        return {name: self._unpack(each) for name, each in self._named(value)}

    def _named(self, tree: State) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            yield self._checked(name), value

    def _checked(self, value: Any) -> Any:
        """Refuse numbers and texts that nothing here writes, and that fail where they are used."""
        if what := _unlike(value):
            raise fault(self._path, what, REMEDY)
        return value

    def _of_bytes(self, name: str, dtype: Any) -> Tensor:
        """A data set of bytes as a tensor of that type."""
        kind, data = _AS_BYTES.get(str(dtype)), self._array(name, ("|u1",))
        wide = 0 if kind is None else torch.empty((), dtype=kind).element_size()
        if kind is None or not data.dim() or data.shape[-1] != wide:
            raise fault(self._path, f"has a tensor of type {str(dtype)[:80]!r}", REMEDY)
        if kind is torch.bool:
            return data[..., 0] != 0
        found = torch.empty(data.shape[:-1], dtype=kind)
        as_bytes(found).copy_(data)
        return found

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

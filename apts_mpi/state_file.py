"""A state, nested dictionaries of tensors and plain values, as one sealed HDF5 file.

The data set `state` holds the state as JSON text (uint8), in which a tensor is replaced by its
place in the group `arrays`. No pickle: to read a file never runs code.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from apts_mpi import sealed
from apts_mpi.data.format import LIBVER, fault, opened

State = dict[str, Any]

KIND = "apts-mpi-state"
REMEDY = "take another checkpoint"
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
        text = _array(file, path, "state", ("|u1",))
        try:
            tree = json.loads(text.numpy().tobytes())
        except (ValueError, RecursionError) as error:
            raise fault(path, f"is damaged ({error})", REMEDY) from None
        if not isinstance(tree, dict):
            raise fault(path, "holds no state", REMEDY)
        return _unpack(tree, file, path)


def _unpack(tree: State, file: h5py.File, path: Path) -> State:
    state: State = {}
    for name, value in tree.items():
        if not isinstance(value, dict):
            state[name] = value
        elif set(value) == {_ARRAY}:
            state[name] = _array(file, path, str(value[_ARRAY]), _DTYPES)
        else:
            state[name] = _unpack(value, file, path)
    return state


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


def _array(file: h5py.File, path: Path, name: str, dtypes: tuple[str, ...]) -> Tensor:
    """A data set as a tensor, once its type, layout and claimed size have been checked."""
    link = file.get(name, getlink=True)
    data = file.get(name) if isinstance(link, h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.dtype.str not in dtypes:
        raise fault(path, f"has no data set {name[:80]!r} of type {' or '.join(dtypes)}", REMEDY)
    plist = data.id.get_create_plist()
    layouts = (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    claimed = math.prod(data.shape) * data.dtype.itemsize
    if plist.get_layout() not in layouts or plist.get_external_count():
        raise fault(path, f"{name[:80]} has a storage layout that this format does not use", REMEDY)
    if claimed > data.id.get_storage_size() or claimed > path.stat().st_size:
        raise fault(path, f"{name[:80]} claims {claimed} bytes, more than the file has", REMEDY)
    return torch.from_numpy(np.asarray(data[()]))

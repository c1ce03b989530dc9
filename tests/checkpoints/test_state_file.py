"""Sealed files: what is written is read, what was changed is refused, what fails leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apts_mpi.checkpoints.state_file import (
    State,
    Unwritable,
    check,
    read_state,
    rehearsed,
    write_state,
)
from apts_mpi.errors import InputError
from apts_mpi.files import sealed
from apts_mpi.files.forms import as_bytes

NUMBERS = st.one_of(st.integers(-(2**62), 2**62), st.floats(), st.booleans(), st.none(), st.text())
DTYPES = [
    *(torch.bool, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
]
TENSORS = st.builds(
    lambda shape, dtype, seed: (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        .mul(100)
        .to(dtype)
    ),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
# A dictionary of this one key stands for a tensor in the file's text.
KEYS = st.text().filter(lambda name: name != "__array__")
STATES = st.dictionaries(
    KEYS,
    st.recursive(
        st.one_of(NUMBERS, TENSORS),
        lambda inner: st.one_of(
            st.dictionaries(KEYS, inner, max_size=3), st.lists(inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        if not isinstance(two, Tensor) or one.dtype != two.dtype or one.shape != two.shape:
            return False
        return torch.equal(as_bytes(one), as_bytes(two))
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[name], two[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and (one == two or (one != one and two != two))


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@given(STATES)
@settings(max_examples=20, deadline=None)
def test_what_is_written_is_read_bit_for_bit(state: State) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.h5"
        assert write_state(path, state) == path.stat().st_size
        assert same(state, read_state(path))
        assert same(state, rehearsed(state)), "these tensors are small"
        assert os.listdir(folder) == ["state.h5"]


def test_tensors_that_are_no_plain_ones() -> None:
    wide = torch.arange(12.0).view(3, 4)
    conjugated = torch.view_as_complex(wide.view(3, 2, 2)).conj()
    for tensor in (wide.t(), wide[:, ::2], torch.ones(3, 1).expand(3, 4), conjugated, wide[0, 0]):
        assert same(tensor.resolve_conj(), rehearsed({"x": tensor})["x"])
    large = torch.arange(10**6, dtype=torch.int32)
    found = rehearsed({"x": large})["x"]
    assert torch.equal(found, large[: len(found)])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
        (torch.empty(3, device="meta"), "cannot be read"),
        ((1, 2), "is a tuple"),
        (b"bytes", "is a bytes"),
        (np.int64(3), "is a int64"),
        ({1: 2}, "has the key 1"),
        ({"__array__": "x"}, "has the key '__array__'"),
        (10**30, "too many digits"),
        ("\ud800", "surrogates"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:torch.quantize")
def test_what_would_not_come_back_is_not_written(tmp_path: Path, value: Any, told: str) -> None:
    state = {"network": {"part": [0, value() if callable(value) else value]}}
    for write in (rehearsed, lambda state: write_state(tmp_path / "state.h5", state)):
        with pytest.raises(Unwritable, match=rf"network\.part\[1\] .*{told}"):
            write(state)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ({"dtype": "float16"}, "type 'float16'"),  # two bytes a number, and here are four
        ({"dtype": "qint32"}, "type 'qint32'"),
        ({"dtype": "load"}, "type 'load'"),
        ({"dtype": ["bool"]}, "a tensor of type"),
        ({"dtype": "int32", "__array__": "/arrays/1"}, "no data set"),
    ],
)
def test_bytes_of_another_type_are_refused(path: Path, place: State, told: str) -> None:
    write_state(path, {"table": torch.arange(3, dtype=torch.int32), "other": torch.zeros(2, 4)})
    with h5py.File(path, "r+") as file:
        tree = json.loads(file["state"][()].tobytes())
        tree["table"].update(place)
        del file["state"]
        file["state"] = np.frombuffer(json.dumps(tree).encode(), dtype=np.uint8)
    sealed.seal(path, "apts-mpi-state")
    with pytest.raises(InputError, match=told):
        read_state(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state.h5"
    write_state(path, {"vector": torch.arange(50.0), "text": "words", "inner": {"k": 3}})
    return path


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("way", ["flip", "cut", "longer"])
def test_any_change_is_refused_before_anything_is_read(path: Path, part: float, way: str) -> None:
    data = bytearray(path.read_bytes())
    at = int(part * (len(data) - 1))
    if way == "flip":
        data[at] ^= 1
    path.write_bytes(bytes(data[:at] if way == "cut" else data + b"\0" * (way == "longer")))
    for reading in (check, read_state):
        with pytest.raises(InputError, match=r"state\.h5: is damaged.*; take another checkpoint"):
            reading(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("nothing", "folder", "pipe"):
        with pytest.raises(InputError, match=f"{name}: is missing"):
            read_state(tmp_path / name)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(sealed.os if failing == "fsync" else Path, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        write_state(path, {"other": 1})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_seal_is_of_one_kind(path: Path) -> None:
    assert sealed.unbroken(path, "apts-mpi-state")
    assert not sealed.unbroken(path, "apts-mpi-index")
    assert not sealed.unbroken(path, "apts-mpi")

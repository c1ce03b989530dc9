"""Sealed files: what is written is read, what was changed is refused, what fails leaves nothing."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apts_mpi import sealed
from apts_mpi.errors import InputError
from apts_mpi.state_file import State, check, read_state, write_state

NUMBERS = st.one_of(st.integers(-(2**62), 2**62), st.floats(), st.booleans(), st.none(), st.text())
TENSORS = st.builds(
    lambda shape, dtype, seed: (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        .mul(100)
        .to(dtype)
    ),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8]),
    st.integers(0, 99),
)
# A dictionary of this one key stands for a tensor in the file's text.
KEYS = st.text().filter(lambda name: name != "__array__")
STATES = st.dictionaries(
    KEYS,
    st.recursive(
        st.one_of(NUMBERS, TENSORS, st.lists(NUMBERS, max_size=3)),
        lambda inner: st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        if not isinstance(two, Tensor) or one.dtype != two.dtype or one.shape != two.shape:
            return False
        return one.numpy().tobytes() == two.numpy().tobytes()
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[name], two[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and (one == two or (one != one and two != two))


@given(STATES)
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_bit_for_bit(state: State) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.h5"
        assert write_state(path, state) == path.stat().st_size
        assert same(state, read_state(path))
        assert os.listdir(folder) == ["state.h5"]


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

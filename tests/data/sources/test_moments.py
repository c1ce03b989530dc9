"""Features that vary by less than float32 can tell about their mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apts_mpi.data.sources import stored
from tests.data.helpers import made, read_whole, refused, saved

RNG = np.random.default_rng(0)
Y = np.arange(400) % 4
GOOD = RNG.normal(size=400)
SPREAD = RNG.uniform(0, 864, 400)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        (1.7e9 + SPREAD, "about 1.7e+09"),
        (-1.7e9 - SPREAD, "varies by"),
        ((2**40 + np.arange(400)).astype("i8"), "1099511627776"),
        ((10**18 + np.arange(400)).astype("i8"), "1000000000000000000"),
        (np.uint64(2**63) + np.arange(400, dtype="u8"), "9223372036854775808"),
        ((2**30 + np.arange(400)).astype("i4"), "1073741824"),
    ],
)
def test_features_that_float32_loses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, column: np.ndarray, value: str
) -> None:
    """In some blocks; the same without the constant is taken whole."""
    monkeypatch.setattr(stored, "BLOCK", 1000)
    other = (GOOD * 100).astype(column.dtype) if column.dtype.kind == "i" else abs(GOOD * 100)
    x = np.stack([other.astype(column.dtype), column], axis=1)
    with refused("own", "x[:, 1] varies by", value, "subtract a constant", "its minimum"):
        read_whole(saved(tmp_path / f"own{suffix}", x=x, y=Y))
    with refused("own", "x_train[:, 1]", value):
        made(x_train=x[:4])
    x[:, 1] -= x[:, 1].min()
    source = read_whole(saved(tmp_path / f"own{suffix}", x=x, y=Y))
    found = np.sort(np.concatenate([source.x_train, source.x_test])[:, 1])
    assert np.allclose(found, np.sort(x[:, 1]), rtol=1e-6)


def test_constants_and_what_float32_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = [
        np.full(400, 7.1),
        np.full(400, 1.7e15 + 0.1),
        1e9 / 3 * (1 + 2e-16 * np.sign(GOOD)),
        GOOD * 1e-30,
        GOOD * 1e30,
        1.7e9 + 1e6 * GOOD,
        np.where(GOOD > 1, 2.0**24 + 1, 0),
    ]
    read_whole(saved(tmp_path / "own.npz", x=np.stack(columns, axis=1), y=Y))
    assert not caplog.text
    read_whole(saved(tmp_path / "own.npz", x=np.stack([GOOD, 1 + 1e-9 * GOOD], axis=1), y=Y))
    assert "x[:, 1] varies by" in caplog.text
    assert "taken for a constant" in caplog.text


def test_it_is_the_training_that_counts(tmp_path: Path) -> None:
    """A few samples near each other are no fault of a test."""
    x = (1.7e9 + 1e7 * GOOD)[:, None]
    near = np.array([[1.7e9], [1.7e9 + 3.3]])
    read_whole(saved(tmp_path / "own.npz", x_train=x, y_train=Y, x_test=near, y_test=Y[:2]))

"""Training, validation and test: their names, and cutting one from another."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.errors import InputError, fault

log = logging.getLogger("apts_mpi")

SPLITS = ("train", "val", "test")  # in the order in which they are shown; there may be no "val"
TEST_FRACTION = 0.2

Indices = NDArray[np.int64]


def generator(seed: int) -> np.random.Generator:
    """The random generator of `seed`, a whole number >= 0."""
    if seed < 0:
        raise InputError(f"seed {seed}: give a whole number from 0 up")
    return np.random.default_rng(seed)


def apportion(total: int, weights: Sequence[float], *, least: int = 0) -> list[int]:
    """Split `total` into whole numbers in proportion to `weights` (largest remainder).

    Every part gets `least` at least, taken from the largest parts.
    """
    share = np.asarray(weights, dtype=np.float64)
    share = share / share.max()  # so that the sum cannot overflow
    exact = share / share.sum() * total
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    while counts.min() < least:
        counts[counts.argmax()] -= 1
        counts[counts.argmin()] += 1
    return [int(count) for count in counts]


def split_indices(y: Indices, test_fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Stratified train and test indices, ceil(n * test_fraction) of them for the test.

    No class goes to the test whole, so a few samples fewer may be taken from tiny classes.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"--test-fraction {test_fraction}: give a test fraction between 0 and 1")
    rng = generator(seed)
    counts = np.bincount(y)
    test_counts = apportion(math.ceil(len(y) * test_fraction), counts.tolist())
    is_test = np.zeros(len(y), dtype=bool)
    for label, (count, wanted) in enumerate(zip(counts, test_counts, strict=True)):
        if count:
            chosen = rng.permutation(np.flatnonzero(y == label))[: min(wanted, count - 1)]
            is_test[chosen] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def strata(y: NDArray[Any], task: str) -> NDArray[np.int64]:
    """What a split is stratified by; a regression is split as one class would be: at random."""
    return y if task == "classification" else np.zeros(len(y), dtype=np.int64)


def warn_if_short(where: Path | str, flag: str, fraction: float, taken: int, samples: int) -> None:
    """Classes of one sample give none away: of many such a cut comes out far smaller."""
    if samples * fraction > 1 and taken < samples * fraction / 2:
        log.warning(
            "%s: %d of %d samples were cut for %s %g: most classes have one sample, which stays in "
            "the training",
            where,
            taken,
            samples,
            flag,
            fraction,
        )


def with_test(
    where: Path,
    x: dict[str, Any],
    y: dict[str, NDArray[Any]],
    plain: bool,
    fraction: float | None,
    seed: int,
    task: str = "classification",
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The splits with a test among them: cut from `train`, or the only ones held out."""
    if "test" in x:
        if fraction is not None:
            raise fault(where, "has a test of its own", "drop --test-fraction")
        return x, y
    if "val" in x and fraction is None:
        log.warning(
            "%s: has no test samples: its validation samples are taken for the test; "
            "--test-fraction X cuts a test from the training samples instead",
            where,
        )
        return {"train": x["train"], "test": x["val"]}, {"train": y["train"], "test": y["val"]}
    if not plain and fraction is None:
        raise fault(
            where,
            "has training samples and no others",
            "say --test-fraction X to cut a test from them, or name a test's too",
        )
    asked = TEST_FRACTION if fraction is None else fraction
    train, test = split_indices(strata(y["train"], task), asked, seed)
    if not len(test):
        raise fault(where, f"has {len(y['train'])} samples, none of them for the test", "give more")
    warn_if_short(where, "--test-fraction", asked, len(test), len(y["train"]))
    cut = {"train": train, "test": test}
    return (
        {**x, **{split: x["train"][rows] for split, rows in cut.items()}},
        {**y, **{split: y["train"][rows] for split, rows in cut.items()}},
    )

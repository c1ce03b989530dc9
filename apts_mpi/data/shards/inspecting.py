"""`inspect`: what a sharding holds, after every byte of it has been verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from apts_mpi.data.shards.format import INDEX, shard_fault
from apts_mpi.data.shards.index import check_virtual
from apts_mpi.data.shards.info import DatasetInfo
from apts_mpi.data.shards.reading import read_info, scan_shard
from apts_mpi.data.sources.moments import Moments, divisors, nonzero, target_divisors

MOST_COLUMNS = 20  # classes shown one by one


def describe(directory: Path) -> str:
    """Verify a sharding completely and describe it in text; InputError on the first fault."""
    directory = Path(directory)
    info = read_info(directory)
    check_virtual(directory, info)
    moments, targets = Moments(info.mean.shape), Moments(info.target_shape)
    tables: dict[str, list[NDArray[Any]]] = {split: [] for split in info.splits}
    for split, shard in tqdm(info.files, desc="verifying", unit="file", disable=None, leave=False):
        counts = np.zeros(len(info.classes), dtype=np.int64)

        def use(
            _: int,
            block: NDArray[Any],
            train: bool = split == "train",
            counts: NDArray[np.int64] = counts,
        ) -> None:
            if info.task == "language":
                counts += np.bincount(block, minlength=len(counts))
            elif train:
                moments.add(block)

        size = info.splits[split].sizes[shard]
        y = scan_shard(directory, info, split, shard, 0, size, use)
        if info.task == "regression":
            if split == "train":
                targets.add(y)
            tables[split].append(y)
        else:
            tables[split].append(counts + np.bincount(y, minlength=len(counts)))
    if info.task != "language" and not _is_raw(info):
        _check_moments(directory, moments, divisors, info.mean, info.std, "")
    if info.target_mean is not None and info.target_std is not None:
        moments_of = (info.target_mean, info.target_std)
        _check_moments(directory, targets, target_divisors, *moments_of, "target_")
    table = _ranges if info.task == "regression" else _table
    return "\n".join([*heading(info), *(table(info, name, tables[name]) for name in tables)])


def _is_raw(info: DatasetInfo) -> bool:
    """Whether features are taken as they are."""
    return info.mean.shape == () and (float(info.mean), float(info.std)) == (0.0, 1.0)


def _check_moments(
    directory: Path,
    found: Moments,
    divided: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    prefix: str,
) -> None:
    found_mean, found_std = found.result()
    # Sums taken in another order differ in their last digits.
    if np.any(np.abs(found_mean - mean) > 1e-6 * std + 1e-12 * np.abs(mean)):
        raise shard_fault(directory / INDEX, f"the {prefix}mean is not that of the training data")
    # Earlier shards have 1 for a constant, and rounding as the deviation that it is.
    known = (nonzero(found_std), divided(found_mean, found_std))
    if np.any(np.all([np.abs(each - std) > 1e-6 * std for each in known], axis=0)):
        raise shard_fault(directory / INDEX, f"the {prefix}std is not that of the training data")


def heading(info: DatasetInfo) -> list[str]:
    """What the index says, in lines."""
    first = f"data set       {info.name} ({info.task}, format {info.format_version})"
    last = f"digest         {info.digest}"
    names = ", ".join(info.classes[:MOST_COLUMNS])
    more = ", ..." if len(info.classes) > MOST_COLUMNS else ""
    if info.task == "language":
        return [
            first,
            f"tokens         {_sizes(info)}",
            f"stored         {np.dtype(info.dtype).name}",
            f"vocabulary     {len(info.classes)}: {names}{more}",
            last,
            "verified       attributes, digests, tokens, virtual data sets",
        ]
    outputs = f"classes        {len(info.classes)}: {names}{more}"
    if info.target_mean is not None and info.target_std is not None:
        mean, std = info.target_mean, info.target_std
        outputs = (
            f"targets        float32 {info.target_shape}: mean {mean.min():.4g} to "
            f"{mean.max():.4g}, std {std.min():.4g} to {std.max():.4g}"
        )
    scale = "per channel"
    if info.mean.shape == ():
        scale = "none: values as they are" if _is_raw(info) else "one for all features"
    elif info.mean.shape == info.sample_shape:
        scale = "per feature"
    mean, std = info.mean, info.std
    values = (
        f"mean {float(mean):.6g}, std {float(std):.6g}"
        if info.mean.shape == ()
        else f"mean {mean.min():.4g} to {mean.max():.4g}, std {std.min():.4g} to {std.max():.4g}"
    )
    kind = "targets" if info.task == "regression" else "labels"
    return [
        first,
        f"samples        {_sizes(info)}",
        f"sample         {np.dtype(info.dtype).name} {info.sample_shape}",
        outputs,
        f"normalisation  {values} ({scale})",
        last,
        f"verified       attributes, digests, {kind}, normalisation, virtual data sets",
    ]


def _sizes(info: DatasetInfo) -> str:
    counts = ", ".join(f"{split.total} {name}" for name, split in info.splits.items())
    return f"{counts}, in {info.shards} shards"


def _ranges(info: DatasetInfo, split: str, targets: list[NDArray[Any]]) -> str:
    """Sizes and targets of each shard."""
    rows = [["file", "start", "samples", "least", "mean", "most"]]
    table = info.splits[split]
    for shard, y in enumerate(targets):
        values = [f"{v:.4g}" for v in (y.min(), y.mean(dtype=float), y.max())] if len(y) else "---"
        name = info.filename(split, shard)
        rows.append([name, str(table.starts[shard]), str(len(y)), *values])
    return _aligned(rows)


def _table(info: DatasetInfo, split: str, found: list[NDArray[Any]]) -> str:
    """Sizes and counts of classes or tokens of each shard.

    The skew is the total-variation distance between the class frequencies of a shard and those
    of the split: 0 when they are the same, near 1 when the shard has one rare class.
    """
    few = len(info.classes) <= MOST_COLUMNS
    counts = np.array(found)
    units = ["tokens", "distinct"] if info.task == "language" else ["samples", "classes"]
    head = list(info.classes) if few else [units[1], "fewest", "most"]
    rows = [["file", "start", units[0], "skew", *head]]
    whole = counts.sum(axis=0) / max(1, counts.sum())
    table = info.splits[split]
    for shard, row in enumerate(counts):
        size = table.sizes[shard]
        skew = f"{np.abs(row / size - whole).sum() / 2:.3f}" if size else "-"
        cells = row if few else [np.count_nonzero(row), row.min(), row.max()]
        name = info.filename(split, shard)
        rows.append([name, str(table.starts[shard]), str(size), skew, *map(str, cells)])
    return _aligned(rows)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(["", *lines])

"""`inspect`: what a sharding holds, after every byte of it has been verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from apts_mpi.data.format import (
    INDEX,
    SPLITS,
    check_seal,
    fault,
    opened,
)
from apts_mpi.data.info import DatasetInfo
from apts_mpi.data.moments import Moments
from apts_mpi.data.reading import read_info, scan_shard

MOST_COLUMNS = 20  # classes shown one by one


def describe(directory: Path) -> str:
    """Verify a sharding completely and describe it in text; InputError on the first fault."""
    directory = Path(directory)
    info = read_info(directory)
    _check_virtual(directory, info)
    moments = Moments(scalar=info.mean.shape == ())
    counts: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
    work = [(split, shard) for split in SPLITS for shard in range(info.shards)]
    for split, shard in tqdm(work, desc="verifying", unit="file", disable=None, leave=False):

        def use(_: int, block: NDArray[Any], train: bool = split == "train") -> None:
            if train:
                moments.add(block)

        size = info.splits[split].sizes[shard]
        labels = scan_shard(directory, info, split, shard, 0, size, use)
        counts[split].append(np.bincount(labels, minlength=len(info.classes)))
    mean, std = moments.result()
    # Sums taken in another order differ in their last digits.
    if np.any(np.abs(mean - info.mean) > 1e-6 * info.std + 1e-12 * np.abs(info.mean)):
        raise fault(directory / INDEX, "the mean is not that of the training data")
    if np.any(np.abs(std - info.std) > 1e-6 * info.std):
        raise fault(directory / INDEX, "the std is not that of the training data")
    return "\n".join([*_heading(info), *(_table(info, s, np.array(counts[s])) for s in SPLITS)])


def _check_virtual(directory: Path, info: DatasetInfo) -> None:
    """See that the virtual data sets of the index map every shard to its place."""
    path = directory / INDEX
    check_seal(path)
    with opened(path) as file:
        for split, table in info.splits.items():
            expected = [
                (start, start + size - 1, info.filename(split, shard))
                for shard, (start, size) in enumerate(
                    zip(table.starts[:-1], table.sizes, strict=True)
                )
                if size
            ]
            for name, shape in (("x", info.sample_shape), ("y", ())):
                data = file.get(f"{split}/{name}")
                if not (
                    isinstance(data, h5py.Dataset)
                    and data.is_virtual
                    and data.shape == (table.total, *shape)
                ):
                    raise fault(path, f"has no virtual data set {split}/{name} of the right shape")
                mapped = []
                for source in data.virtual_sources():
                    first, last = source.vspace.get_select_bounds()
                    if source.dset_name == name:
                        mapped.append((first[0], last[0], source.file_name))
                if sorted(mapped) != expected:
                    raise fault(path, f"virtual data set {split}/{name} does not map the shards")


def _heading(info: DatasetInfo) -> list[str]:
    scale = "one for all features" if info.mean.shape == () else "per feature"
    mean, std = info.mean, info.std
    values = (
        f"mean {float(mean):.6g}, std {float(std):.6g}"
        if info.mean.shape == ()
        else f"mean {mean.min():.4g} to {mean.max():.4g}, std {std.min():.4g} to {std.max():.4g}"
    )
    names = ", ".join(info.classes[:MOST_COLUMNS])
    more = ", ..." if len(info.classes) > MOST_COLUMNS else ""
    return [
        f"data set       {info.name} ({info.task}, format {info.format_version})",
        f"samples        {info.samples} train, {info.test_samples} test, in {info.shards} shards",
        f"sample         {np.dtype(info.dtype).name} {info.sample_shape}",
        f"classes        {len(info.classes)}: {names}{more}",
        f"normalisation  {values} ({scale})",
        f"digest         {info.digest}",
        "verified       attributes, digests, labels, normalisation, virtual data sets",
    ]


def _table(info: DatasetInfo, split: str, counts: NDArray[np.int64]) -> str:
    """Sizes and class counts of each shard.

    The skew is the total-variation distance between the class frequencies of a shard and those
    of the split: 0 when they are the same, near 1 when the shard has one rare class.
    """
    few = len(info.classes) <= MOST_COLUMNS
    head = list(info.classes) if few else ["classes", "fewest", "most"]
    rows = [["file", "start", "samples", "skew", *head]]
    whole = counts.sum(axis=0) / max(1, counts.sum())
    table = info.splits[split]
    for shard, row in enumerate(counts):
        size = table.sizes[shard]
        skew = f"{np.abs(row / size - whole).sum() / 2:.3f}" if size else "-"
        cells = row if few else [np.count_nonzero(row), row.min(), row.max()]
        name = info.filename(split, shard)
        rows.append([name, str(table.starts[shard]), str(size), skew, *map(str, cells)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(["", *lines])

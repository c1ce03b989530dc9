"""Where a rank computes, and what it computes on: device, threads, its part of the data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apts_mpi.comm.communicator import Comm
from apts_mpi.data import (
    DatasetInfo,
    Partition,
    Stream,
    cache_directory,
    check_files,
    load_source,
    read_index,
    read_partition,
    unread,
    windowed,
    write_shards,
)
from apts_mpi.errors import InputError
from apts_mpi.networks.losses import Units
from apts_mpi.networks.task import Task
from apts_mpi.settings.defaults import CONTEXT


@dataclass(frozen=True)
class Held:
    """A part of a split, held on this rank's device.

    Attributes:
        x: (m, *sample_shape). y: (m, ...) targets. total: samples of the split, all parts.
    """

    x: Tensor
    y: Tensor
    total: int

    @classmethod
    def of(cls, part: Partition, device: torch.device) -> Held:
        """Move a part that was read to the device."""
        x, y = torch.from_numpy(part.x).to(device), torch.from_numpy(part.y).to(device)
        return cls(x, y, part.total)

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The samples of these numbers, (b, *sample_shape) and (b, ...)."""
        chosen = _on(torch.from_numpy(index), self.x.device)
        # Twice as fast as indexing, for the same values.
        return self.x.index_select(0, chosen), self.y.index_select(0, chosen)

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in their order, so many at a time."""
        for i in range(0, len(self), size):
            yield self.x[i : i + size], self.y[i : i + size]


class Streamed:
    """The same, read from the shards ahead of need; memory is bounded (data/minibatches/).

    Args:
        stream: of the part. device: where samples are wanted.
    """

    def __init__(self, stream: Stream, device: torch.device) -> None:
        self.stream, self._device = stream, device
        self.total = stream.total

    def __len__(self) -> int:
        return self.stream.samples

    def take(self, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The samples of these numbers."""
        x, y = self.stream.take(index)
        return _on(torch.from_numpy(x), self._device), _on(torch.from_numpy(y), self._device)

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in their order, so many at a time."""
        for x, y in self.stream.blocks(size):
            yield torch.from_numpy(x).to(self._device), torch.from_numpy(y).to(self._device)


class _Some(Streamed):
    """Some of streamed samples, to be evaluated: all are read, these are given.

    Args:
        numbers: of the samples in the part, ascending. total: of all parts together.
    """

    def __init__(self, all_of_them: Streamed, numbers: NDArray[np.int64], total: int) -> None:
        super().__init__(all_of_them.stream, all_of_them._device)
        self._numbers, self.total = numbers, total

    def __len__(self) -> int:
        return len(self._numbers)

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Those samples, at most so many at a time."""
        start = 0
        for x, y in super().blocks(size):
            ends = np.searchsorted(self._numbers, (start, start + len(y)))
            own = torch.from_numpy(self._numbers[ends[0] : ends[1]] - start).to(y.device)
            start += len(y)
            if len(own):
                yield x.index_select(0, own), y.index_select(0, own)


def _on(tensor: Tensor, device: torch.device) -> Tensor:
    """On a device, for whose work of before the host does not wait."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


Samples = Held | Streamed  # of a part of a split


def spread(parts: Sequence[Samples], wanted: int, comm: Comm) -> list[Samples]:
    """So many samples of all ranks' parts, evenly spaced in their order; every rank calls it.

    They are the same on any number of ranks; all samples where there are no more.
    """
    total, many = parts[0].total, len(parts)
    if wanted >= total:
        return list(parts)
    sizes = np.zeros(comm.size * many)
    sizes[comm.rank * many :][:many] = [len(each) for each in parts]
    comm.allreduce(sizes)
    starts = np.cumsum(sizes).astype(np.int64) - sizes.astype(np.int64)
    numbers, found = np.arange(wanted) * total // wanted, list[Samples]()
    for each, start in zip(parts, starts[comm.rank * many :], strict=False):
        own = numbers[(numbers >= start) & (numbers < start + len(each))] - start
        chosen = _Some(each, own, wanted) if isinstance(each, Streamed) else None
        found.append(chosen or Held(*each.take(own), wanted))
    return found


def load(
    data: str,
    comm: Comm,
    say: Callable[[str], object],
    *,
    device: torch.device,
    shards: int | None = None,
    splits: Sequence[str] | None = None,
    subdomains: int = 1,
    context: int | None = None,
    stream: bool = False,
) -> tuple[DatasetInfo, dict[str, list[Samples]]]:
    """This rank's samples of each split; every rank calls it.

    Args:
        data: shard directory, or "digits". shards: of the digits; default one per subdomain.
        splits: default all that there are.
        subdomains: of a rank, whose training samples are kept apart; other splits have one part.
        context: tokens of a window, where the data are text; of no meaning elsewhere.
        stream: whether samples stay on the disk until they are needed.

    Raises:
        AgreedError: on every rank, for what is wrong with the files of any.
    """
    directory = Path(data)
    with comm.together():
        if data == "digits" and not directory.exists():
            shards = shards or comm.size * subdomains
            directory = cache_directory("digits", shards)
            # The cache may be a host's own: one rank per host makes it where it is not there.
            if comm.local_rank == 0 and not directory.exists():
                home = os.path.expanduser("~")
                where = str(directory).replace(home, "~", 1) if home != "/" else str(directory)
                source = load_source("digits")
                most = len(source.y_train)
                if comm.size * subdomains == shards > most:
                    raise InputError(
                        f"--subdomains-per-rank {subdomains}: {comm.size} ranks have {shards} "
                        f"subdomains, and the digits {most} training samples; give fewer"
                    )
                say(f"cutting the digits into {shards} shards in {where}")
                write_shards(source, directory, shards=shards, exist_ok=True)
    found = None
    with comm.together():
        if comm.rank == 0:
            found = read_index(directory)
    text = comm.broadcast_text("" if found is None else found.to_text())
    info = shown = DatasetInfo.from_text(text)
    context = (context or CONTEXT) if info.task == "language" else None
    parts = dict[str, list[Samples]]()
    with comm.together(), _like_rank_zero(directory, info, comm):
        if context is not None:
            shown = windowed(info, context)
        wanted = splits or tuple(info.splits)
        # Every shard is checked by whoever reads it; what nobody reads is shared out.
        check_files(directory, info, unread(shown, wanted)[comm.rank :: comm.size])
        for split in wanted:
            many = subdomains if split == "train" else 1
            parts[split] = []
            for k in range(many):
                part = (directory, split, comm.rank * many + k, comm.size * many)
                parts[split].append(
                    Streamed(Stream(*part, context=context, info=info), device)
                    if stream
                    else Held.of(read_partition(*part, context, info=info), device)
                )
    return shown, parts


@contextmanager
def _like_rank_zero(directory: Path, info: DatasetInfo, comm: Comm) -> Iterator[None]:
    """Within, shards are compared with rank 0's index, `info`.

    Where one does not fit, this rank's own index may not either: its folder may be another one.
    """
    try:
        yield
    except InputError:
        own = read_index(directory)
        if own == info:
            raise
        raise InputError(
            f"rank {comm.rank} on {comm.host} has data unlike rank 0's: {own.name} {own.digest} "
            f"against {info.name} {info.digest}; start all ranks alike"
        ) from None


def units_of(info: DatasetInfo, device: torch.device) -> Units | None:
    """The units of a regression's targets; None of any other task."""
    if info.target_mean is None or info.target_std is None:
        return None
    return Units(
        torch.as_tensor(info.target_mean, device=device),
        torch.as_tensor(info.target_std, device=device),
    )


def task_of(info: DatasetInfo) -> Task:
    """What a network for these data has to do."""
    outputs = info.outputs if info.task == "regression" else len(info.classes)
    return Task(info.task, info.sample_shape, outputs)

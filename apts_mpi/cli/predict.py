"""``predict``: what a trained network says of samples, as a table or as HDF5."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apts_mpi.cli.trained import Fitted, fitted, on_device
from apts_mpi.comm.alone import Alone
from apts_mpi.data.sources.finding import READERS, opened_file
from apts_mpi.data.sources.stored import Stored
from apts_mpi.errors import InputError, fault, writing
from apts_mpi.settings.config import TrainConfig
from apts_mpi.training.device import place
from apts_mpi.training.trained import Trained

SUFFIXES = (".csv", ".h5", ".hdf5")
_FEATURES = ("x", "x_test", "images", "data", "features", "inputs")  # where a file has several

Block = tuple[Tensor, "Tensor | None"]  # (b, *sample_shape) normalised, and what is known of them
Columns = dict[str, NDArray[Any]]


def require_suffix(path: Path) -> None:
    """InputError where a file's ending says of no format that is known."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"--out {path}: {path.suffix or 'no ending'} is no format of predictions; name a file "
            "that ends in .csv or .h5"
        )


def predict(
    trained: Trained,
    say: Callable[[str], object],
    *,
    data: str,
    split: str,
    device: str,
    out: Path,
    overwrite: bool,
) -> str:
    """Write predictions for a split of shards, or for the samples of a file; returns what to print.

    Of classes that is the predicted one and the probability of each, of regressions the outputs in
    the units of the targets; beside them what is known of the samples.

    Raises:
        InputError: the data do not fit the network, or the file cannot be written.
    """
    if out.exists() and not overwrite:
        raise InputError(f"--out {out}: exists; name another file or give --overwrite")
    if trained.task.kind == "language":
        raise InputError("predict: is for classes and numbers, the network is for text")
    comm = Alone()
    if Path(data).suffix.lower() in READERS and not Path(data).is_dir():
        placement = place(TrainConfig(device=device), comm, say)
        network = on_device(trained, placement.device)
        blocks: Iterator[Block] = _of_file(Path(data), trained, placement.device)
    else:
        samples, network = fitted(trained, comm, say, data=data, split=split, device=device)
        blocks = iter(samples.blocks(1024))
    written = _Csv if out.suffix.lower() == ".csv" else _H5
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with writing(f"--out {out}"):
            out.parent.mkdir(parents=True, exist_ok=True)
            with closing(written(beside, trained.classes)) as file:
                count = sum(file.add(each) for each in _predicted(trained, network, blocks))
            os.replace(beside, out)
    finally:
        with suppress(OSError):
            beside.unlink()
    return f"{count} predictions after iteration {trained.checkpoint.iteration}: {out}"


def _predicted(trained: Trained, network: Fitted, blocks: Iterator[Block]) -> Iterator[Columns]:
    task, units, known = trained.task, network.criterion.units, "label"
    with closing(network.flat.evaluated(blocks)) as found:  # type: ignore[arg-type]
        for outputs, y in found:
            if not isinstance(outputs, Tensor) or outputs.shape[1:] != task.output_shape:
                raise InputError(
                    f"predict: the network gives outputs of its own kind, not {task.output_shape} "
                    "per sample; use apts_mpi.load from Python"
                )
            columns: Columns = {}
            if task.kind == "classification":
                shares = outputs.softmax(dim=1).cpu().numpy()
                columns = {"predicted": shares.argmax(axis=1), "probability": shares}
            else:
                values = outputs if units is None else units.predicted(outputs)
                columns, known = {"predicted": values.cpu().numpy()}, "target"
            yield columns if y is None else {known: y.cpu().numpy(), **columns}


def _of_file(path: Path, trained: Trained, device: torch.device) -> Iterator[Block]:
    """The samples of a file of arrays, normalised as the network wants them."""
    stored, shape = _features(path), trained.task.sample_shape
    last = len(shape) == 3 and stored.shape[1:] == (*shape[1:], shape[0])  # images, channels last
    if stored.shape[1:] != shape and not last:
        what = f"has samples {stored.shape[1:]}, the network takes {shape}"
        raise fault(path, what, "give features like those it was trained on")
    for rows in stored.blocks():
        for start in range(0, len(rows), 1024):
            block = rows[start : start + 1024]
            block = np.moveaxis(block, -1, 1) if last else block
            x = ((block - trained.mean) / trained.std).astype(np.float32)
            if not np.isfinite(x).all():
                raise fault(path, "has features that are not finite", "mend them")
            yield torch.from_numpy(x).to(device), None


def _features(path: Path) -> Stored:
    file = opened_file(path, "the file")
    names = list(file.names)
    usual = [name for name in _FEATURES if name in names]
    if len(names) > 1 and not usual:
        shown = ", ".join(names[:8])
        raise fault(path, f"has arrays {shown}", "call the one with the samples x")
    if not names:
        raise fault(path, "has no array", "save the samples as x")
    return file.array(usual[0] if usual else names[0])


class _File(Protocol):
    def add(self, columns: Columns) -> int:
        """Append a block of rows; how many there were."""

    def close(self) -> None:
        """No more rows."""


class _Csv:
    """A row per sample: names of classes, and the probability of each or the outputs by number."""

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._rows, self._classes, self._count = csv.writer(self._file), classes, 0

    def add(self, columns: Columns) -> int:
        """Append a block of rows."""
        many = len(columns["predicted"])
        if not self._count:
            head = (self._heads(name, values) for name, values in columns.items())
            self._rows.writerow(["sample", *(name for names in head for name in names)])
        for k in range(many):
            cells = (self._cells(values[k]) for values in columns.values())
            self._rows.writerow([self._count + k, *(cell for each in cells for cell in each)])
        self._count += many
        return many

    def _heads(self, name: str, values: NDArray[Any]) -> list[str]:
        if values.ndim == 1:
            return [name]
        if name == "probability":
            return [f"p({each})" for each in self._classes]
        return [f"{name}_{k}" for k in range(values.shape[1])] if values.shape[1] > 1 else [name]

    def _cells(self, value: Any) -> list[str]:
        if np.ndim(value) == 0:
            return [self._classes[int(value)]]
        return [f"{each:.7g}" for each in value]

    def close(self) -> None:
        """No more rows."""
        self._file.close()


class _H5:
    """A data set per column, numbers of classes beside their names in ``classes``."""

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        self._file = h5py.File(path, "w")
        if classes:
            self._file["classes"] = np.array(classes, dtype=h5py.string_dtype())

    def add(self, columns: Columns) -> int:
        """Append a block of rows."""
        for name, values in columns.items():
            if name not in self._file:
                shape = (0, *values.shape[1:])
                most = (None, *values.shape[1:])
                self._file.create_dataset(name, shape, values.dtype, maxshape=most, chunks=True)
            data = self._file[name]
            data.resize(len(data) + len(values), axis=0)
            data[len(data) - len(values) :] = values
        return len(columns["predicted"])

    def close(self) -> None:
        """No more rows."""
        self._file.close()

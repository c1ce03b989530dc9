"""What a source gives: a data set of samples, or a text of tokens, split and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.data.sources.checks import check_features, check_labels, check_names, check_targets
from apts_mpi.data.sources.moments import Precision
from apts_mpi.data.sources.splits import SPLITS
from apts_mpi.data.sources.stored import Stored
from apts_mpi.errors import fault

TASKS = ("classification", "regression")

Samples = Any  # an array, or `Stored`: callers that made it know which
Tokens = Any  # an array, or `StoredTokens`: callers that made it know which


@dataclass(frozen=True, eq=False)
class Source:
    """A data set, checked on creation; its samples in memory, or `Stored` in files.

    `x_*` are (n, *sample_shape); uint8 is kept (image-like), all other real types become
    float32. `y_*` are class indices 0..C-1 of shape (n,), made int64; `classes` has C >= 2
    names. Of the task "regression" `y_*` are targets (n,) or (n, outputs), made float32 of shape
    (n, outputs), and `classes` is empty. `x_val` and `y_val` are None where there is no validation
    split. `origin` names the data in messages. Raises InputError.
    """

    name: str
    x_train: Samples
    y_train: NDArray[Any]
    x_test: Samples
    y_test: NDArray[Any]
    classes: tuple[str, ...] = ()
    origin: str = ""
    task: str = "classification"
    x_val: Samples = None
    y_val: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        where = self.origin or self.name
        if self.task not in TASKS or (self.task == "regression" and self.classes):
            raise ValueError(f"a source of {self.task} with {len(self.classes)} classes")
        regression = self.task == "regression"
        names = check_names(where, self.name, self.classes, least=0 if regression else 2)
        checked: dict[str, Any] = {"origin": where, "classes": names}
        if (self.x_val is None) != (self.y_val is None):
            raise ValueError("x_val and y_val go together")
        for split in self.splits:
            x, y = getattr(self, f"x_{split}"), np.asarray(getattr(self, f"y_{split}"))
            if not isinstance(x, Stored):  # which is checked as it is read
                given = np.asarray(x)
                x = check_features(where, f"x_{split}", given)
                if split == "train":
                    precision = Precision(given.shape[1:], given.dtype)
                    precision.add(given)
                    precision.check(where, "x_train")
            checked[f"x_{split}"] = x
            if regression:
                y = check_targets(where, f"y_{split}", y, len(x))
            else:
                y = check_labels(where, f"y_{split}", y, len(x), len(self.classes))
            checked[f"y_{split}"] = y
        for split in self.splits[1:]:
            x, other_x = checked["x_train"], checked[f"x_{split}"]
            train, other = (f"{each.dtype} {each.shape[1:]}" for each in (x, other_x))
            if train != other:
                what = f"samples are {train} in x_train, {other} in x_{split}"
                raise fault(where, what, "make one kind")
            if checked["y_train"].shape[1:] != checked[f"y_{split}"].shape[1:]:
                pair = (checked["y_train"], checked[f"y_{split}"])
                outputs = " and ".join(str(each.shape[1]) for each in pair)
                raise fault(where, f"{outputs} outputs in y_train and y_{split}", "make one kind")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of its parts."""
        return SPLITS if self.y_val is not None else ("train", "test")

    def columns(self, split: str) -> dict[str, Samples]:
        """The data sets of a split."""
        return {name: getattr(self, f"{name}_{split}") for name in ("x", "y")}


@dataclass(frozen=True, eq=False)
class TextSource:
    """A text: the tokens of its training and its test part, each (n,), in their order, and of a
    validation part, if there is one; in memory, or in files, which are read when they are needed.

    Tokens are uint8, or int32 where the vocabulary has more than 256; `classes` are their names:
    a printable character itself, U+000A or 0x0A. `origin` names the text in messages.
    """

    name: str
    train: Tokens
    test: Tokens
    classes: tuple[str, ...]
    origin: str = ""
    val: Tokens | None = None
    task = "language"

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of its parts."""
        return SPLITS if self.val is not None else ("train", "test")

    def columns(self, split: str) -> dict[str, Tokens]:
        """The data sets of a split."""
        return {"tokens": getattr(self, split)}

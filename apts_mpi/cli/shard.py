"""``shard``: its flags, and the data set that they name cut into shards."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from apts_mpi.cli.flags import Parser, one_of, switch
from apts_mpi.data import (
    SOURCES,
    Source,
    TextSource,
    describe,
    load_source,
    load_text,
    write_shards,
)
from apts_mpi.data.sources.finding import NAMED
from apts_mpi.data.sources.load import refuse_unused
from apts_mpi.data.sources.moments import NORMALIZE
from apts_mpi.data.sources.source import TASKS
from apts_mpi.data.sources.text import LEVELS
from apts_mpi.errors import InputError

_SPLIT = {"": "training", "val": "validation", "test": "test"}


class _Flag(NamedTuple):
    """A flag: its line in the help, and its options in argparse."""

    name: str
    help: str
    options: dict[str, Any]

    @property
    def dest(self) -> str:
        return str(self.options.get("dest", self.name.lstrip("-").replace("-", "_")))


def _sides(text: str) -> tuple[int, int]:
    parts = text.split(",")
    try:
        high, wide = (int(part) for part in (parts * 2 if len(parts) == 1 else parts))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 32,48 or 32") from None
    return high, wide


def _source_flags() -> Iterator[_Flag]:
    """Of the data set: what it is, and where it lies."""
    yield _Flag(
        "source",
        "digits (embedded), mnist, cifar10, your arrays, folders of images, or a text",
        one_of("source", (*SOURCES, "text")),
    )
    yield _Flag(
        "--from",
        "mnist: folder of the four IDX files, gzipped or not; cifar10: folder of the binary "
        "version's six files; arrays: a .npz, .h5 or .mat (MATLAB 7.3) file with x and y, or these "
        "of train, val and test (x_train, test_images, val/labels and the like); imagefolder: a "
        "folder with one folder of images per class, or train, val and test with such; text: a "
        "file, or a folder, whose *.txt files are joined by newlines in the order of their names",
        {"dest": "path", "type": Path, "metavar": "PATH"},
    )
    for name in NAMED:
        role, _, split = name.partition("-")
        what = "samples" if role == "x" else "labels or targets"
        yield _Flag(
            f"--{name}",
            f"arrays: instead of --from, the {_SPLIT[split]} {what}: a .npy file, or a "
            "name in a .npz, .h5 or .mat file",
            {"metavar": "FILE[:NAME]"},
        )
    yield _Flag(
        "--channels-last",
        "arrays: whether images come as (h, w, channels) and are made (channels, h, w); by "
        "default bytes that look like it are, with a line; other types and numbers of channels "
        "are asked about",
        {"type": switch, "metavar": "on|off"},
    )
    yield _Flag("--out", "shard directory", {"type": Path, "required": True, "metavar": "DIR"})
    yield _Flag(
        "--shards", "how many; best one per rank", {"type": int, "required": True, "metavar": "K"}
    )
    yield _Flag(
        "--download",
        "mnist, cifar10: fetch the files to --from, checked",
        {"action": "store_true", "default": None},
    )


def _sample_flags() -> Iterator[_Flag]:
    """Of its samples: which are held out, and what is made of them."""
    yield _Flag(
        "--test-fraction",
        "part of the samples kept for testing where the source has no split (default 0.2); of "
        "a text its end (default 0.1)",
        {"type": float, "metavar": "X"},
    )
    yield _Flag(
        "--val-fraction",
        "part of the training samples kept for validation, by which a run may be chosen "
        "without looking at the test data; of a text its end before the test (default none)",
        {"type": float, "metavar": "X"},
    )
    yield _Flag(
        "--normalize",
        "what has a mean and a deviation of its own, those of the training data: every "
        "feature, every channel (first dimension of a sample), or one for all; off: values as "
        "they are; auto: by feature for samples (features,), by channel for images (channels, "
        "height, width), one for others (default auto; one is better for pixels stored flat)",
        {**one_of("--normalize", NORMALIZE), "default": "auto"},
    )
    yield _Flag(
        "--task",
        "arrays: what they are for; the y of a regression are real, (n,) or (n, outputs) "
        "(default classification)",
        one_of("--task", TASKS),
    )
    yield _Flag(
        "--size",
        "imagefolder: rows and columns, or one number for both; an image is scaled so that it "
        "covers them, and cut about its centre",
        {"type": _sides, "metavar": "H,W"},
    )
    yield _Flag(
        "--channels",
        "imagefolder: 3 for colour, 1 for grey (default 3)",
        {"type": int, "choices": (1, 3)},
    )
    yield _Flag(
        "--level",
        "text: what its tokens are (default char, of UTF-8)",
        one_of("--level", LEVELS),
    )


def _cut_flags() -> Iterator[_Flag]:
    """Of the shards: who gets which samples."""
    yield _Flag("--seed", "of the order (default 0)", {"type": int, "default": 0, "metavar": "N"})
    yield _Flag(
        "--stratified", "every shard with the same share of each class", {"action": "store_true"}
    )
    yield _Flag("--sizes", "relative sizes of the shards; default equal", {"metavar": "A,B,..."})
    yield _Flag(
        "--dirichlet",
        "skew the labels: Dirichlet concentration, smaller is more uneven (0.1 strong)",
        {"type": float, "metavar": "X"},
    )
    yield _Flag("--overwrite", "replace an existing directory", {"action": "store_true"})


FLAGS = (*_source_flags(), *_sample_flags(), *_cut_flags())


def shard_parser() -> Parser:
    """The flags of ``shard``."""
    parser = Parser("shard", description="Cut a data set into HDF5 shards.")
    for flag in FLAGS:
        parser.add_argument(flag.name, help=flag.help, **flag.options)
    return parser


def shard(parsed: argparse.Namespace) -> str:
    """Cut a data set into shards; returns what it wrote, in text.

    Raises:
        InputError: the data set cannot be read, or the flags do not fit it.
    """
    sizes = None
    if parsed.sizes is not None:
        try:
            sizes = [float(size) for size in parsed.sizes.split(",")]
        except ValueError:
            raise InputError(f"--sizes {parsed.sizes}: must be numbers like 3,2,1") from None
    write_shards(
        _source(parsed),
        parsed.out,
        shards=parsed.shards,
        seed=parsed.seed,
        stratified=parsed.stratified,
        sizes=sizes,
        dirichlet=parsed.dirichlet,
        normalize=parsed.normalize,
        overwrite=parsed.overwrite,
    )
    return describe(parsed.out)


def _source(parsed: argparse.Namespace) -> Source | TextSource:
    """The data set that `shard` was asked for."""
    name = parsed.source
    options = {flag.name.removeprefix("--"): getattr(parsed, flag.dest) for flag in FLAGS}
    refuse_unused(name, options)
    fractions = {each: getattr(parsed, each) for each in ("test_fraction", "val_fraction")}
    if name == "text":
        if parsed.path is None:
            raise InputError("text: no file given; name a text file or a folder with --from")
        return load_text(parsed.path, level=parsed.level or "char", **fractions)
    return load_source(
        name,
        path=parsed.path,
        download=bool(parsed.download),
        seed=parsed.seed,
        task=parsed.task or "classification",
        size=parsed.size,
        channels=parsed.channels,
        named={each: text for each in NAMED if (text := options[each]) is not None},
        channels_last=parsed.channels_last,
        **fractions,
    )

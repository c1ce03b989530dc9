"""``shard``: its flags, and the data set that they name cut into shards."""

from __future__ import annotations

import argparse
from pathlib import Path

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
from apts_mpi.data.sources.moments import NORMALIZE
from apts_mpi.data.sources.source import TASKS
from apts_mpi.data.sources.text import LEVELS
from apts_mpi.errors import InputError

_SPLIT = {"": "training", "val": "validation", "test": "test"}


def _sides(text: str) -> tuple[int, int]:
    parts = text.split(",")
    try:
        high, wide = (int(part) for part in (parts * 2 if len(parts) == 1 else parts))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 32,48 or 32") from None
    return high, wide


def shard_parser() -> Parser:
    """The flags of ``shard``."""
    parser = Parser("shard", description="Cut a data set into HDF5 shards.")
    parser.add_argument(
        "source",
        **one_of("source", (*SOURCES, "text")),
        help="digits (embedded), mnist, cifar10, your arrays, folders of images, or a text",
    )
    parser.add_argument(
        "--from",
        dest="path",
        type=Path,
        metavar="PATH",
        help="mnist: folder of the four IDX files, gzipped or not; cifar10: folder of the binary "
        "version's six files; arrays: a .npz, .h5 or .mat (MATLAB 7.3) file with x and y, or these "
        "of train, val and test (x_train, test_images, val/labels and the like); imagefolder: a "
        "folder with one folder of images per class, or train, val and test with such; text: a "
        "file, or a folder, whose *.txt files are joined by newlines in the order of their names",
    )
    for flag in NAMED:
        role, _, split = flag.partition("-")
        what = "samples" if role == "x" else "labels or targets"
        parser.add_argument(
            f"--{flag}",
            dest=flag,
            metavar="FILE[:NAME]",
            help=f"arrays: instead of --from, the {_SPLIT[split]} {what}: a .npy file, or a "
            "name in a .npz, .h5 or .mat file",
        )
    parser.add_argument(
        "--channels-last",
        type=switch,
        metavar="on|off",
        help="arrays: whether images come as (h, w, channels) and are made (channels, h, w); by "
        "default bytes that look like it are, with a line; other types and numbers of channels "
        "are asked about",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="shard directory")
    parser.add_argument(
        "--shards", type=int, required=True, metavar="K", help="how many; best one per rank"
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="mnist, cifar10: fetch the files to --from, checked",
    )
    parser.add_argument(
        "--test-fraction",
        type=float,
        metavar="X",
        help="part of the samples kept for testing where the source has no split (default 0.2); of "
        "a text its end (default 0.1)",
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="X",
        help="part of the training samples kept for validation, by which a run may be chosen "
        "without looking at the test data; of a text its end before the test (default none)",
    )
    parser.add_argument(
        "--normalize",
        **one_of("--normalize", NORMALIZE),
        default="auto",
        help="what has a mean and a deviation of its own, those of the training data: every "
        "feature, every channel (first dimension of a sample), or one for all; off: values as "
        "they are; auto: by feature for samples (features,), by channel for images (channels, "
        "height, width), one for others (default auto; one is better for pixels stored flat)",
    )
    parser.add_argument(
        "--task",
        **one_of("--task", TASKS),
        help="arrays: what they are for; the y of a regression are real, (n,) or (n, outputs) "
        "(default classification)",
    )
    parser.add_argument(
        "--size",
        type=_sides,
        metavar="H,W",
        help="imagefolder: rows and columns, or one number for both; an image is scaled so that it "
        "covers them, and cut about its centre",
    )
    parser.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        help="imagefolder: 3 for colour, 1 for grey (default 3)",
    )
    parser.add_argument(
        "--level",
        **one_of("--level", LEVELS),
        help="text: what its tokens are (default char, of UTF-8)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the order (default 0)")
    parser.add_argument(
        "--stratified", action="store_true", help="every shard with the same share of each class"
    )
    parser.add_argument(
        "--sizes", metavar="A,B,...", help="relative sizes of the shards; default equal"
    )
    parser.add_argument(
        "--dirichlet",
        type=float,
        metavar="X",
        help="skew the labels: Dirichlet concentration, smaller is more uneven (0.1 strong)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing directory")
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
    name, path = parsed.source, parsed.path
    if parsed.level and name != "text":
        raise InputError(f"--level: {name} has no text; drop the option")
    if parsed.task and name == "text":
        raise InputError(f"--task {parsed.task}: a text is for a language model; drop the option")
    for flag in ("size", "channels"):
        if getattr(parsed, flag) is not None and name != "imagefolder":
            raise InputError(f"--{flag}: it is for imagefolder; drop the option")
    named = {flag: text for flag in NAMED if (text := getattr(parsed, flag)) is not None}
    if name == "text":
        if named or parsed.channels_last is not None:
            flag = next(iter(named), "channels-last")
            raise InputError(f"--{flag}: it is for arrays; drop the option")
        if path is None:
            raise InputError("text: no file given; name a text file or a folder with --from")
        if parsed.download:
            raise InputError("--download: a text is not downloaded; drop the option")
        return load_text(
            path,
            level=parsed.level or "char",
            test_fraction=parsed.test_fraction,
            val_fraction=parsed.val_fraction,
        )
    return load_source(
        name,
        path=path,
        download=parsed.download,
        test_fraction=parsed.test_fraction,
        seed=parsed.seed,
        task=parsed.task or "classification",
        size=parsed.size,
        channels=parsed.channels or 3,
        val_fraction=parsed.val_fraction,
        named=named,
        channels_last=parsed.channels_last,
    )

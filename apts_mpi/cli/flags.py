"""The flags of every command, with defaults and units."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from apts_mpi.data import SOURCES
from apts_mpi.data.sources.arrays import NAMED
from apts_mpi.data.sources.moments import NORMALIZE
from apts_mpi.data.sources.source import TASKS
from apts_mpi.data.sources.splits import SPLITS
from apts_mpi.data.sources.text import LEVELS
from apts_mpi.errors import InputError
from apts_mpi.networks.sizes import SIZE_NAMES
from apts_mpi.settings.config import AUTO, TrainConfig, networks_with
from apts_mpi.settings.declaration import EVERYWHERE

SPLIT_TOLD = {"": "training", "val": "validation", "test": "test"}
EPILOG = """\
commands:
  train (the default)   train a network
  shard SOURCE          cut a data set into HDF5 shards
  inspect PATH          describe and verify a shard directory or a checkpoint
  evaluate CHECKPOINT   loss and accuracy on a shard directory, on any number of ranks
  export CHECKPOINT     the network as a plain state_dict (safetensors, or torch's)
  COMMAND --help        the command's own flags

examples:
  mpirun -n 8 python -m apts_mpi
  python -m apts_mpi shard mnist --from DIR --out mnist-8 --shards 8
  mpirun -n 8 python -m apts_mpi train --data mnist-8 --epochs 100 --out run
  mpirun -n 4 python -m apts_mpi train --resume run
  python -m apts_mpi export run --out network.safetensors

exit status: 0 done, 2 bad usage or bad input, 3 stopped by a signal or --max-seconds with a
checkpoint, 1 anything else; the same on every rank
"""


class Parser(argparse.ArgumentParser):
    """Raises instead of printing, so that one rank speaks for all."""

    def error(self, message: str) -> NoReturn:
        """A usage error."""
        raise InputError(f"{message}; see python -m apts_mpi --help")


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither on nor off")
    return text == "on"


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(width) for width in text.split(",") if width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 128,128") from None


def _sides(text: str) -> tuple[int, int]:
    parts = text.split(",")
    try:
        high, wide = (int(part) for part in (parts * 2 if len(parts) == 1 else parts))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 32,48 or 32") from None
    return high, wide


def _steps(text: str) -> int:
    if text == "auto":
        return AUTO
    try:
        steps = int(text)
    except ValueError:
        steps = 0
    if steps < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 1 up nor auto")
    return steps


def _train_parser() -> Parser:
    parser = Parser(
        prog="python -m apts_mpi [train]",
        description="Data-parallel training by APTS, a nonlinearly preconditioned trust-region "
        "method. Run under mpirun or srun, one subdomain a rank; no learning rate to set.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML of these settings; flags override it"
    )
    for item in dataclasses.fields(TrainConfig):
        _add_flag(parser, item)
    return parser


def _add_flag(parser: Parser, item: Any) -> None:
    kind, choices = item.metadata["kind"], item.metadata["choices"]
    text, where = item.metadata["help"], item.metadata["where"]
    if where is not EVERYWHERE:
        text += f"; has effect with {where}"
    elif item.name in SIZE_NAMES:
        text += f"; has effect with {networks_with(item.name)}"
    options: dict[str, Any] = {"type": kind, "default": None}
    shown = item.default
    if kind is bool:
        options["type"], options["metavar"] = _switch, "on|off"
        shown = "on" if item.default else "off"
    elif item.name == "local_steps":
        options["type"], options["metavar"] = _steps, "N|auto"
    elif kind is tuple:
        options["type"], options["metavar"] = _widths, "W,W,..."
    elif choices:
        options["choices"] = choices
    else:
        options["metavar"] = {int: "N", float: "X", str: "TEXT"}[kind]
    if item.default is not None:
        text += f" (default {shown})"
    flag = "--" + item.name.replace("_", "-")
    parser.add_argument(flag, help=text.replace("%", "%%"), **options)


def _shard_parser() -> Parser:
    parser = Parser(prog="python -m apts_mpi shard", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    parser.add_argument(
        "source",
        choices=(*SOURCES, "text"),
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
        "folder with a folder of images a class, or train, val and test with such; text: a file, "
        "or a folder, of whose *.txt files, in the order of their names, a newline comes between",
    )
    for flag in NAMED:
        role, _, split = flag.partition("-")
        what = "samples" if role == "x" else "labels or targets"
        parser.add_argument(
            f"--{flag}",
            dest=flag,
            metavar="FILE[:NAME]",
            help=f"arrays: instead of --from, the {SPLIT_TOLD[split]} {what}: a .npy file, or a "
            "name in a .npz, .h5 or .mat file",
        )
    parser.add_argument(
        "--channels-last",
        type=_switch,
        metavar="on|off",
        help="arrays: whether images come as (h, w, channels) and are made (channels, h, w); by "
        "default bytes that look like it are, with a line; other types and numbers of channels "
        "are asked about",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="shard directory")
    parser.add_argument(
        "--shards", type=int, required=True, metavar="K", help="how many; best one a rank"
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
        choices=NORMALIZE,
        default="auto",
        help="what has a mean and a deviation of its own, those of the training data: every "
        "feature, every channel (first dimension of a sample), or one for all; off: values as "
        "they are; auto: by feature for samples (features,), by channel for images (channels, "
        "height, width), one for others (default auto; one is better for pixels stored flat)",
    )
    parser.add_argument(
        "--task",
        choices=TASKS,
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
        "--level", choices=LEVELS, help="text: what its tokens are (default char, of UTF-8)"
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


def _plain_parser(command: str, description: str) -> Parser:
    parser = Parser(
        prog=f"python -m apts_mpi {command}",
        description=description,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    return parser


def _inspect_parser() -> Parser:
    parser = _plain_parser("inspect", "Describe and verify a shard directory or a checkpoint.")
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="shard directory; a checkpoint's folder; or a run directory, for its newest valid one",
    )
    _add_network(parser)
    return parser


def _evaluate_parser() -> Parser:
    parser = _plain_parser(
        "evaluate", "Loss and accuracy of a checkpoint's network; also under mpirun."
    )
    _add_checkpoint(parser)
    parser.add_argument(
        "--data", metavar="DIR", help="shard directory (default: the one it was trained on)"
    )
    parser.add_argument("--split", choices=SPLITS, default="test", help="(default test)")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="'auto': a GPU where there is one (default auto)",
    )
    return parser


def _export_parser() -> Parser:
    parser = _plain_parser(
        "export",
        "Write a checkpoint's network, of APTS the average of its iterates, as a plain state_dict; "
        "what it takes is in the metadata of a safetensors file.",
    )
    _add_checkpoint(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write: .safetensors; or .pt, .pth for torch.load(FILE, weights_only=True)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


def _add_checkpoint(parser: Parser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a checkpoint's folder, or a run directory, for its newest valid one",
    )
    _add_network(parser)


def _add_network(parser: Parser) -> None:
    parser.add_argument(
        "--network",
        metavar="TEXT",
        help="the checkpoint's network, where it is your own: package.module:function, whose code "
        "is run",
    )


PARSERS: dict[str, Callable[[], Parser]] = {
    "train": _train_parser,
    "shard": _shard_parser,
    "inspect": _inspect_parser,
    "evaluate": _evaluate_parser,
    "export": _export_parser,
}

"""The command line: parse, build the objects, call one function."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import apts_mpi
from apts_mpi.comm import Comm
from apts_mpi.config import AUTO, TrainConfig, read_toml
from apts_mpi.data import SOURCES, describe, load_source, write_shards
from apts_mpi.errors import InputError

EPILOG = """\
commands:
  train (the default)   train a network
  shard SOURCE          cut a data set into HDF5 shards
  inspect DIR           describe and verify a shard directory
  COMMAND --help        the command's own flags

examples:
  mpirun -n 8 python -m apts_mpi
  python -m apts_mpi shard mnist --from DIR --out mnist-8 --shards 8
  mpirun -n 8 python -m apts_mpi train --data mnist-8 --epochs 100

exit status: 0 done, 2 bad usage or bad input, 1 anything else; the same on every rank
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
    text = item.metadata["help"]
    options: dict[str, Any] = {"type": kind, "default": None}
    shown = item.default
    if kind is bool:
        options["type"], options["metavar"] = _switch, "on|off"
        shown = "on" if item.default else "off"
    elif item.name == "local_steps":
        options["type"], options["metavar"] = _steps, "N|auto"
    elif item.name == "hidden":
        options["type"], options["metavar"] = _widths, "W,W,..."
        shown = ",".join(map(str, item.default))
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
        "source", choices=SOURCES, help="digits (embedded), mnist, cifar10, or your arrays"
    )
    parser.add_argument(
        "--from",
        dest="path",
        type=Path,
        metavar="PATH",
        help="mnist: folder of the four IDX files, gzipped or not; cifar10: folder of the binary "
        "version's six files; arrays: a .npz or .h5 file with x_train, y_train, x_test, y_test, or "
        "x and y",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="shard directory")
    parser.add_argument(
        "--shards", type=int, required=True, metavar="K", help="how many; best one a rank"
    )
    parser.add_argument(
        "--download", action="store_true", help="mnist: fetch the files to --from, checked"
    )
    parser.add_argument(
        "--test-fraction",
        type=float,
        default=0.2,
        metavar="X",
        help="part of the samples kept for testing where the source has no split (default 0.2)",
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


def _inspect_parser() -> Parser:
    parser = Parser(prog="python -m apts_mpi inspect", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    parser.add_argument("path", type=Path, metavar="DIR", help="shard directory")
    return parser


def main(arguments: Sequence[str], comm: Comm) -> int:
    """Run one command on every rank; returns the exit status.

    Raises:
        AgreedError: on every rank, for bad usage or bad input on any.
    """
    arguments = list(arguments)
    command = "train"
    if arguments and arguments[0] in ("train", "shard", "inspect"):
        command = arguments.pop(0)
    parser = {"train": _train_parser, "shard": _shard_parser, "inspect": _inspect_parser}[command]()
    speaks = comm.rank == 0
    if {"-h", "--help"} & set(arguments):
        if speaks:
            parser.print_help()
        return 0
    if command == "train" and "--version" in arguments:
        if speaks:
            print(f"apts_mpi {apts_mpi.__version__}")
        return 0
    error, config, parsed = None, TrainConfig(), argparse.Namespace()
    try:
        parsed = parser.parse_args(arguments)
        if command == "train":
            config = _config(parsed)
    except InputError as caught:
        error = caught
    comm.agree(error)
    if command == "train":
        return _train(config, comm)
    try:  # the other commands are one process's work
        if speaks:
            print(_shard(parsed) if command == "shard" else describe(parsed.path))
    except InputError as caught:
        error = caught
    comm.agree(error)
    return 0


def train_settings(arguments: Sequence[str]) -> TrainConfig:
    """The settings that flags of ``train`` give.

    Raises:
        InputError: bad usage.
    """
    return _config(_train_parser().parse_args(list(arguments)))


def _config(parsed: argparse.Namespace) -> TrainConfig:
    values = read_toml(parsed.config) if parsed.config else {}
    for item in dataclasses.fields(TrainConfig):
        given = getattr(parsed, item.name)
        if given is not None:
            values[item.name] = given
    return TrainConfig(**values)


def _train(config: TrainConfig, comm: Comm) -> int:
    from apts_mpi.report import RankLog, table
    from apts_mpi.training import Training

    training = Training(config, comm)
    log = logging.getLogger("apts_mpi")
    log.handlers = [RankLog(training.console)]
    log.propagate = False
    summary = training.run()
    if comm.rank == 0:
        print(table(summary, training.directory.path))
    return 0


def _shard(parsed: argparse.Namespace) -> str:
    sizes = None
    if parsed.sizes is not None:
        try:
            sizes = [float(size) for size in parsed.sizes.split(",")]
        except ValueError:
            raise InputError(f"--sizes {parsed.sizes}: must be numbers like 3,2,1") from None
    source = load_source(
        parsed.source,
        path=parsed.path,
        download=parsed.download,
        test_fraction=parsed.test_fraction,
        seed=parsed.seed,
    )
    write_shards(
        source,
        parsed.out,
        shards=parsed.shards,
        seed=parsed.seed,
        stratified=parsed.stratified,
        sizes=sizes,
        dirichlet=parsed.dirichlet,
        overwrite=parsed.overwrite,
    )
    return describe(parsed.out)

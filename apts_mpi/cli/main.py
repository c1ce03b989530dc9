"""The command line: parse, build the objects, call one function."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from apts_mpi.checkpoints.weights import require_suffix
from apts_mpi.cli.flags import PARSERS
from apts_mpi.comm import job
from apts_mpi.data import Source, TextSource, describe, load_source, load_text, write_shards
from apts_mpi.data.sources.arrays import NAMED
from apts_mpi.errors import AgreedError, InputError
from apts_mpi.settings.config import TrainConfig
from apts_mpi.settings.toml import read_toml
from apts_mpi.version import __version__

if TYPE_CHECKING:
    from apts_mpi.comm.communicator import Comm
    from apts_mpi.training.console import Console


def main(arguments: Sequence[str], comm: Comm | None = None) -> int:
    """Run one command on every rank; returns the exit status.

    Args:
        comm: the ranks; default those that were started, by MPI where a command needs it.

    Raises:
        AgreedError: on every rank, for bad usage or bad input on any.
    """
    arguments = list(arguments)
    command = "train"
    if arguments and arguments[0] in PARSERS:
        command = arguments.pop(0)
    parser = PARSERS[command]()
    speaks = job.speaks(0, 1) if comm is None else comm.rank == 0
    if {"-h", "--help"} & set(arguments):
        if speaks:
            parser.print_help()
        return 0
    if command == "train" and "--version" in arguments:
        if speaks:
            print(f"apts_mpi {__version__}")
        return 0
    error, values, parsed = None, dict[str, Any](), argparse.Namespace()
    try:
        parsed = parser.parse_args(arguments)
        if command == "train":
            values = _values(parsed)
        elif command == "export":
            require_suffix(parsed.out)
    except InputError as caught:
        error = caught
    if comm is None and error is not None and job.launched() is None:
        raise AgreedError(str(error))
    if command == "train":
        return _train(values, comm, error)
    if comm is None:
        comm = _comm(alone=job.launched() is None)
    comm.agree(error)
    if command == "shard":
        told = _alone(lambda: _shard(parsed), comm)
    else:
        told = _look(command, parsed, comm)
    if comm.rank == 0:
        print(told)
    return 0


def _comm(*, alone: bool) -> Comm:
    """The ranks; ``alone``: this process, for what needs no MPI."""
    if alone:
        from apts_mpi.comm.alone import Alone

        return Alone()
    from apts_mpi.comm.communicator import Comm

    return Comm()


def train_settings(arguments: Sequence[str]) -> TrainConfig:
    """The settings that flags of ``train`` give.

    Raises:
        InputError: bad usage.
    """
    return TrainConfig(**_values(PARSERS["train"]().parse_args(list(arguments))))


def _values(parsed: argparse.Namespace) -> dict[str, Any]:
    """The settings that are given, by the configuration file or by flags.

    Raises:
        InputError: one is outside its range or has no effect beside the others.
    """
    values = read_toml(parsed.config) if parsed.config else {}
    names = (item.name for item in dataclasses.fields(TrainConfig))
    flags = {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    values.update(flags)
    config = TrainConfig(**values)
    if config.resume is None:  # else the run that goes on has the others
        config.check_given(flags)
    return values


def _train(values: dict[str, Any], comm: Comm | None, error: InputError | None) -> int:
    from apts_mpi.training.signals import StopSignals

    with StopSignals() as signals:  # before MPI starts, which may take long
        from apts_mpi.comm.communicator import STOP
        from apts_mpi.comm.watch import Watch
        from apts_mpi.training import resuming
        from apts_mpi.training.loop import Training
        from apts_mpi.training.summary import table

        ranks = _comm(alone=False) if comm is None else comm
        ranks.agree(error)
        signals.ask = lambda: ranks.wish(STOP)
        given, console = TrainConfig(**values), _console(ranks)
        with Watch(ranks, given.stall_warning, given.stall_abort) as ranks.watch:
            config, resumed = resuming.settings(values, ranks, console.say)
            training = Training(config, ranks, resumed=resumed, signals=signals)
            summary = training.run()
    if ranks.rank == 0:
        print(table(summary, training.directory.path))
    return 0


def _console(comm: Comm) -> Console:
    """Where lines for people go, the package's warnings among them."""
    from apts_mpi.training.console import Console, RankLog

    console = Console(comm)
    log = logging.getLogger("apts_mpi")
    log.handlers = [RankLog(console)]
    log.propagate = False
    return console


def _look(command: str, parsed: argparse.Namespace, comm: Comm) -> str:
    """What `inspect`, `evaluate` and `export` tell; every rank calls it."""
    from apts_mpi.checkpoints.folder import holds, newest
    from apts_mpi.cli import trained

    path = parsed.path if command == "inspect" else parsed.checkpoint
    if command == "inspect" and not holds(path, comm):
        return _alone(lambda: describe(path), comm)
    say = _console(comm).say
    checkpoint = newest(path, comm, say)
    if command == "inspect":
        return trained.describe(checkpoint, comm, named=parsed.network)
    network = trained.restore(checkpoint, comm, named=parsed.network)
    if command == "evaluate":
        return trained.score(
            network, comm, say, data=parsed.data, split=parsed.split, device=parsed.device
        )
    return _alone(lambda: trained.export(network, parsed.out, overwrite=parsed.overwrite), comm)


def _alone(work: Callable[[], str], comm: Comm) -> str:
    """One process's work, that of rank 0; all ranks raise what it does."""
    with comm.together():
        return "" if comm.rank else work()


def _shard(parsed: argparse.Namespace) -> str:
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

"""The command line: parse, build the objects, call one function."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from apts_mpi.checkpoints import weights
from apts_mpi.cli.flags import COMMANDS, PARSERS, PROGRAM, Parser, train_parser
from apts_mpi.comm import job
from apts_mpi.errors import AgreedError, InputError, did_you_mean
from apts_mpi.settings.config import SETTINGS, TrainConfig
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
    named = bool(arguments) and not arguments[0].startswith("-")
    command = arguments.pop(0) if named else "train"
    asking = ("-h", "--help", *(("--help-all", "--version") if command == "train" else ()))
    wanted = set(asking) & set(arguments)
    if wanted and command in COMMANDS:
        if job.speaks(0, 1) if comm is None else comm.rank == 0:
            _print_help(command, wanted)
        return 0
    error, values, parsed = None, dict[str, Any](), argparse.Namespace()
    try:
        parsed = _parser(command).parse(arguments)
        if command == "train":
            values = _values(parsed)
        elif command == "export":
            weights.require_suffix(parsed.out)
        elif command == "predict":
            from apts_mpi.cli.predict import require_suffix

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
        from apts_mpi.cli.shard import shard

        report = _alone(lambda: shard(parsed), comm)
    elif command == "plot":
        from apts_mpi.cli.plot import plot

        report = _alone(lambda: plot(parsed.runs, parsed.out, parsed.x), comm)
    else:
        report = _look(command, parsed, comm)
    if comm.rank == 0:
        print(report)
    return 0


def _parser(command: str, *, everything: bool = False) -> Parser:
    """The flags of a command; ``everything``: the help of train shows all of them.

    Raises:
        InputError: there is no such command.
    """
    if command not in COMMANDS:
        known = f"commands are {', '.join(COMMANDS)}"
        why = did_you_mean(command, COMMANDS) or f"; {known}"
        raise InputError(f"{command}: no such command{why} (see {PROGRAM} --help)")
    if command == "shard":
        from apts_mpi.cli.shard import shard_parser

        return shard_parser()
    return train_parser(everything=everything) if command == "train" else PARSERS[command]()


def _print_help(command: str, wanted: set[str]) -> None:
    if wanted == {"--version"}:
        print(f"apts_mpi {__version__}")
    else:
        _parser(command, everything="--help-all" in wanted).print_help()


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
    return TrainConfig(**_values(_parser("train").parse(arguments)))


def _values(parsed: argparse.Namespace) -> dict[str, Any]:
    """The settings that are given, by the configuration file or by flags.

    Raises:
        InputError: one is outside its range or has no effect beside the others.
    """
    values = read_toml(parsed.config) if parsed.config else {}
    flags = {name: v for name in SETTINGS if (v := getattr(parsed, name)) is not None}
    values.update(flags)
    config = TrainConfig(**values)
    if config.resume is None:  # else the run that is resumed has the others
        config.check_given(flags)
    return values


def _train(values: dict[str, Any], comm: Comm | None, error: InputError | None) -> int:
    from apts_mpi.training.signals import StopSignals

    with StopSignals() as signals:  # before MPI starts, which may take long
        from apts_mpi.comm.communicator import STOP
        from apts_mpi.comm.elastic import bounded, unavailable
        from apts_mpi.comm.watch import Watch
        from apts_mpi.training import resuming
        from apts_mpi.training.loop import Training
        from apts_mpi.training.recovery import ElasticRun
        from apts_mpi.training.summary import table

        given = TrainConfig(**values)
        why: str | None = ""
        if comm is None and given.elastic:
            with bounded(given.stall_abort):
                why = unavailable()
        if why is None:
            elastic = ElasticRun(values, error, signals, _console)
            summary = elastic.run()
            ranks, training = elastic.comm, elastic.training
        else:
            ranks = _comm(alone=False) if comm is None else comm
            ranks.agree(error)
            ranks.require_same("settings", ["elastic = false"])  # as ElasticRun does
            signals.ask = lambda: ranks.wish(STOP)
            console = _console(ranks)
            if why:
                console.say(f"warning: --elastic: {why}; where a rank dies all end")
            with Watch(ranks, given.stall_warning, given.stall_abort) as ranks.watch:
                config, resumed = resuming.settings(values, ranks, console.say)
                training = Training(config, ranks, resumed=resumed, signals=signals)
                summary = training.run()
    if ranks.rank == 0:
        verbose = training.built.config.verbose
        print(table(summary, training.directory.path, verbose=verbose))
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
    """What `inspect`, `evaluate`, `predict` and `export` report; every rank calls it."""
    from apts_mpi.checkpoints.folder import holds, newest
    from apts_mpi.cli import trained
    from apts_mpi.data import describe
    from apts_mpi.training.trained import chosen, restore

    p = parsed
    path = p.path if command == "inspect" else chosen(p.checkpoint, best=p.best)
    if command == "inspect" and not holds(path, comm):
        return _alone(lambda: describe(path), comm)
    say = _console(comm).say
    checkpoint = newest(path, comm, say)
    if command == "inspect":
        return trained.describe(checkpoint, comm, named=parsed.network)
    network = restore(checkpoint, comm, named=p.network)
    if command == "evaluate":
        how = {"data": p.data, "split": p.split, "device": p.device, "out": p.out}
        return trained.score(network, comm, say, **how)
    if command == "predict":
        from apts_mpi.cli.predict import predict

        more = {"split": p.split, "device": p.device, "out": p.out, "overwrite": p.overwrite}
        return _alone(lambda: predict(network, say, data=p.data, **more), comm)
    return _alone(lambda: trained.export(network, p.out, overwrite=p.overwrite), comm)


def _alone(work: Callable[[], str], comm: Comm) -> str:
    """One process's work, that of rank 0; all ranks raise what it does."""
    with comm.together():
        return "" if comm.rank else work()

"""``python -m benchmarks COMMAND``: parse, and run one benchmark."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from apts_mpi.errors import InputError, did_you_mean
from apts_mpi.files import streams
from benchmarks.harness.jobs import RunFailed

COMMANDS = {  # where each lies, and what it is for
    "checkpoint": ("cost.checkpoint", "what a checkpoint costs: seconds, bytes, share of a run"),
    "compare": (
        "quality.compare.command",
        "the method as it is against tuned baselines, at equal work, 1 to 16 ranks",
    ),
    "convex": (
        "quality.convex.command",
        "does the initial radius matter? One process, convex problems",
    ),
    "corrections": (
        "quality.corrections.command",
        "ways to join corrections, 1 to 8 ranks, i.i.d. to label-skewed data",
    ),
    "cost": (
        "cost.overhead",
        "what the method adds to the evaluations it makes: time and memory",
    ),
    "gpu": (
        "cost.gpu",
        "an outer iteration on a GPU against a bare loop; several ranks on one GPU",
    ),
    "joining": (
        "messages.joining",
        "one vector between hosts: flat or hierarchical, in 32 or 16 bits",
    ),
    "large_n": ("quality.large_n", "16 to 64 subdomains: as many ranks, and one rank"),
    "micro": (
        "messages.micro.command",
        "Allreduce and Bcast by size, through our layer and bare, and the MPI settings",
    ),
    "network": (
        "messages.network.command",
        "time to an accuracy over links of 100 Mbit/s and more; DistributedDataParallel too",
    ),
    "project": (
        "project.command",
        "a cost model, proved on what was measured, then beyond this machine",
    ),
    "published": (
        "quality.published.command",
        "MNIST against the authors' published curves, 2 to 6 ranks",
    ),
    "report": ("report.command", "one HTML page and a Markdown summary of results"),
    "sensitivity": (
        "quality.sensitivity.command",
        "every parameter alone over its whole range; learning rates beside it",
    ),
    "soak": ("cost.soak", "half an hour of one run: does memory stay flat, does it slow down?"),
    "streaming": (
        "cost.streaming",
        "whether a stream from the disk keeps a loop fed: time, waiting, memory",
    ),
    "strong": (
        "scaling.command:STRONG",
        "communication against compute, the same work on more and more ranks",
    ),
    "weak": (
        "scaling.command:WEAK",
        "communication against compute, the same work per rank on more and more ranks",
    ),
}

LIBRARIES = ("matplotlib", "scipy")

EPILOG = """\
Commands write Markdown tables, plots, and the runs as JSON lines, which `report` makes one page of.
They need matplotlib and scipy (pip install 'apts_mpi[bench]'). Options of a command: python -m
benchmarks COMMAND --help

exit status: 0 done, 2 bad usage or bad input, 1 a run failed or anything else
"""


class Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        """A usage error."""
        raise InputError(f"{message}; see python -m benchmarks --help")


def parser(command: str) -> Parser:
    """The command line, in full for one command: only its module is imported, torch is slow."""
    whole = Parser(
        prog="python -m benchmarks",
        description="Measure the method and report what came out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (where, text) in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name != command:
            continue
        place, _, attribute = where.partition(":")
        module = import_module(f"benchmarks.{place}")
        found = getattr(module, attribute or "COMMAND", module)
        one.description = getattr(found, "about", None) or module.__doc__
        found.add_arguments(one)
        one.set_defaults(run=found.run)
    return whole


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    try:
        command = next(iter(arguments), "")
        if command and not command.startswith("-") and command not in COMMANDS:
            why = did_you_mean(command, COMMANDS) or f"; commands are {', '.join(COMMANDS)}"
            raise InputError(f"{command}: no such command{why} (see python -m benchmarks --help)")
        parsed = parser(command).parse_args(arguments)
        status: int = parsed.run(parsed)
        return status
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        print(f"benchmarks: {error}: pip install 'apts_mpi[bench]'", file=sys.stderr)
        return 2
    except (InputError, RunFailed) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


if __name__ == "__main__":
    streams.steady()
    sys.exit(main(sys.argv[1:]))

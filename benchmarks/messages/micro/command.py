"""Allreduce and Bcast by size: through the package's layer and through mpi4py alone, in turns.

On this machine, between hosts of its own making (--hosts 2 --link 100mbit; needs root), or in an
allocation of SLURM, which is used as it is. --settings all tries the known settings of Open MPI
and prints the best as a line for a job script. Writes micro.md, micro.png and micro.jsonl; what is
in micro.jsonl is not measured again.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median

from apts_mpi.errors import InputError
from benchmarks.harness.command import Command, Namespace, Rounds
from benchmarks.harness.hosts import UNLIMITED, Hosts, bits_per_second, missing
from benchmarks.harness.jobs import mpirun
from benchmarks.harness.measure import Job, Outcome, Piece, Session, Start
from benchmarks.harness.mpi_settings import SETTINGS, environment, named
from benchmarks.harness.options import config, names, option, timeout
from benchmarks.harness.results import Row, origin
from benchmarks.messages.micro.plan import CONFIG, Plan, read
from benchmarks.messages.micro.section import command_section, draw_png


def check(options: Namespace) -> str | None:
    """Why nothing can be measured here.

    Raises:
        InputError: the options do not go together.
    """
    planned(options)
    return missing() if options.hosts > 1 and not options.report_only else None


def plan(session: Session) -> Rounds:
    """A round for every setting of MPI; a piece for every operation and size."""
    found = planned(session.options)
    # In a new order every time, so that no setting always has the machine's warm or busy time.
    order = random.sample(sorted(found.settings), len(found.settings))
    if not session.missing(_job(found, mpi) for mpi in order):
        return
    with _starting(found, session.options.launch) as start:
        for mpi in order:
            # Of the machine that starts the job; what else runs there is in the figures.
            load = round(os.getloadavg()[0], 1)
            yield [_job(found, mpi, start(mpi), load)]


def _job(found: Plan, mpi: str, start: Start | None = None, load: float = 0.0) -> Job:
    limits = {name: getattr(found, name) for name in ("seconds", "least", "most", "warmup")}
    asked = {"ranks": found.ranks, "hosts": found.hosts, "limits": limits}
    return Job(
        task="benchmarks.messages.micro.task:task",
        ranks=found.ranks,
        start=start,
        pieces=[
            Piece(
                settings=[found.row(operation, way, size, mpi) for way in ways],
                words=f"{mpi}: {operation} {size} bytes",
                arguments={**asked, "operation": operation, "ways": ways, "size": size},
                keep=partial(_keep, found, ways, load),
            )
            for operation in found.operations
            for size in found.sizes
            if (ways := found.ways(operation))
        ],
    )


def _keep(found: Plan, ways: Sequence[str], load: float, outcome: Outcome) -> tuple[list[Row], str]:
    """A row for every way through."""
    values = outcome.values[0]
    shared = {"load": load, **values["setup"], "versions": values["versions"]}
    cores = origin()["cores"] * (1 if found.made else found.hosts)
    shared["oversubscribed"] = found.ranks > cores
    seconds = [values["seconds"][way] for way in ways]
    rows = [{"seconds": each, "iterations": len(each), **shared} for each in seconds]
    medians = (f"{way} {1e6 * median(each):.1f}" for way, each in zip(ways, seconds, strict=True))
    return rows, f"{', '.join(medians)} us"


@contextmanager
def _starting(found: Plan, launch: str | None) -> Iterator[Callable[[str], Start]]:
    """What starts jobs under a setting of MPI; with hosts of its own making where asked for."""
    if found.made:
        per_host = found.ranks // found.hosts
        with Hosts(found.hosts, link=found.link, ranks_per_host=per_host) as hosts:
            yield lambda mpi: partial(hosts.mpirun, settings=named(mpi))
    else:
        yield lambda mpi: partial(mpirun, found.ranks, launch=launch, env=environment(named(mpi)))


def planned(options: Namespace) -> Plan:
    """The file's plan with the command line's changes.

    Raises:
        InputError: they do not go together.
    """
    if options.hosts < 1 or (options.link and options.hosts < 2):
        raise InputError("--link is of --hosts 2 or more")
    if options.hosts > 1 and options.launch:
        raise InputError("--hosts makes hosts, --launch uses those there are: give one of them")
    given = options.link not in (None, UNLIMITED)
    if given:
        bits_per_second(options.link)
    changes: Row = {"hosts": options.hosts}
    if options.hosts > 1:
        changes |= {"link": options.link if given else UNLIMITED, "ranks": options.hosts}
    elif "SLURM_JOB_ID" in os.environ:
        changes["hosts"] = _number("SLURM_JOB_NUM_NODES", 1)
        changes["ranks"] = _number("SLURM_NTASKS", changes["hosts"])
    if options.ranks is not None:
        changes["ranks"] = options.ranks
    if options.hosts > 1 and changes["ranks"] % options.hosts:
        raise InputError(f"--ranks {options.ranks} must be a multiple of --hosts {options.hosts}")
    if options.settings:
        every = options.settings == ("all",)
        changes["settings"] = tuple(SETTINGS) if every else options.settings
    for name in ("through", "largest"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    return read(options.config, narrow=given, changes=changes)


def _number(variable: str, otherwise: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else otherwise


COMMAND = Command(
    name="micro",
    options=(
        config(CONFIG, "TOML of operations, sizes, settings"),
        option(
            "--ranks", type=int, metavar="N", help="default the file's; one per host; SLURM_NTASKS"
        ),
        option(
            "--hosts", type=int, default=1, metavar="N", help="make hosts on this machine (as root)"
        ),
        option(
            "--link",
            metavar="RATE",
            help="of each of these hosts, like 100mbit (default unlimited)",
        ),
        option(
            "--settings",
            type=names,
            metavar="NAMES",
            help=f"all, or some of {','.join(SETTINGS)} (default the file's)",
        ),
        option(
            "--through", type=names, metavar="NAMES", help="only these ways (default the file's)"
        ),
        option("--largest", type=int, metavar="BYTES", help="no powers above (default the file's)"),
        option(
            "--launch",
            metavar="COMMAND",
            help="starts the ranks, like 'srun -n {ranks}' (default mpirun)",
        ),
        timeout(300.0, "seconds per size"),
    ),
    plan=plan,
    section=lambda rows, options: command_section(rows, planned(options)),
    draw=lambda rows, options, out: draw_png(out / "micro.png", rows),
    libraries=("scipy", "matplotlib"),
    check=check,
)

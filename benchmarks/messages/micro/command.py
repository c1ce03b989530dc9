"""Allreduce and Bcast by size: through the package's layer and through mpi4py alone, in turns.

On this machine, between hosts of its own making (--hosts 2 --link 100mbit; needs root), or in an
allocation of SLURM, which is used as it is. --settings all tries the known settings of Open MPI
and prints the best as a line for a job script. Writes micro.md, micro.png and micro.jsonl; what is
in micro.jsonl is not measured again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from apts_mpi.errors import InputError
from benchmarks.harness import figures
from benchmarks.harness.hosts import bits_per_second, missing
from benchmarks.harness.mpi_settings import SETTINGS
from benchmarks.harness.options import names
from benchmarks.harness.results import Results, Row
from benchmarks.messages.micro.jobs import measure
from benchmarks.messages.micro.plan import CONFIG, Plan, read
from benchmarks.messages.micro.report import report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--config", type=Path, default=CONFIG, metavar="FILE", help="default benchmarks/micro.toml"
    )
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="default the file's; one a host; SLURM_NTASKS"
    )
    parser.add_argument(
        "--hosts", type=int, default=1, metavar="N", help="make hosts on this machine (as root)"
    )
    parser.add_argument(
        "--link", metavar="RATE", help="of each of these hosts, like 100mbit (default unlimited)"
    )
    parser.add_argument(
        "--settings",
        type=names,
        metavar="NAMES",
        help=f"all, or some of {','.join(SETTINGS)} (default the file's)",
    )
    parser.add_argument(
        "--through", type=names, metavar="NAMES", help="only these ways (default the file's)"
    )
    parser.add_argument(
        "--largest", type=int, metavar="BYTES", help="no powers above (default the file's)"
    )
    parser.add_argument(
        "--launch",
        metavar="COMMAND",
        help="starts the ranks, like 'srun -n {ranks}' (default mpirun)",
    )
    parser.add_argument(
        "--timeout", type=float, default=300.0, metavar="S", help="seconds a size (default 300)"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is done")
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing, write what there is"
    )


def run(parsed: argparse.Namespace) -> int:
    """Measure what is missing, write all that is there."""
    if not 0 < parsed.timeout < 1e6:
        raise InputError("--timeout must be positive")
    figures.require("scipy", "matplotlib")
    plan = planned(parsed)
    out = Path(parsed.out)
    results = Results(out / "micro.jsonl", fresh=False)
    reason = missing() if parsed.hosts > 1 and not parsed.report_only else None
    failures = 0
    if reason:
        print(f"skipped: {reason}")
    elif not parsed.report_only:
        failures = measure(
            plan,
            results,
            launch=parsed.launch,
            timeout=parsed.timeout,
            fresh=parsed.fresh,
        )
    report(out, results.rows(), plan)
    return 1 if failures else 0


def planned(parsed: argparse.Namespace) -> Plan:
    """The file's plan with the command line's changes.

    Raises:
        InputError: they do not go together.
    """
    if parsed.hosts < 1 or (parsed.link and parsed.hosts < 2):
        raise InputError("--link is of --hosts 2 or more")
    if parsed.hosts > 1 and parsed.launch:
        raise InputError("--hosts makes hosts, --launch uses those there are: give one of them")
    given = parsed.link not in (None, "unlimited")
    if given:
        bits_per_second(parsed.link)
    changes: Row = {"hosts": parsed.hosts}
    if parsed.hosts > 1:
        changes |= {"link": parsed.link if given else "unlimited", "ranks": parsed.hosts}
    elif "SLURM_JOB_ID" in os.environ:
        changes["hosts"] = _number("SLURM_JOB_NUM_NODES", 1)
        changes["ranks"] = _number("SLURM_NTASKS", changes["hosts"])
    if parsed.ranks is not None:
        changes["ranks"] = parsed.ranks
    if parsed.hosts > 1 and changes["ranks"] % parsed.hosts:
        raise InputError(f"--ranks {parsed.ranks} must be a multiple of --hosts {parsed.hosts}")
    if parsed.settings:
        every = parsed.settings == ("all",)
        changes["settings"] = tuple(SETTINGS) if every else parsed.settings
    for name in ("through", "largest"):
        if getattr(parsed, name) is not None:
            changes[name] = getattr(parsed, name)
    return read(parsed.config, narrow=given, changes=changes)


def _number(variable: str, otherwise: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else otherwise

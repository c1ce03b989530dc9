"""One HTML page of results, in any mix.

Reads JSON lines of strong, weak, micro, network, project and compare. Writes report.html, which
needs no network and no other file. Figures and sections appear where there are rows for them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from apts_mpi.errors import InputError
from benchmarks.harness import figures, methods
from benchmarks.harness.command import OUT
from benchmarks.harness.names import PRODUCT
from benchmarks.harness.results import packed
from benchmarks.harness.rows import Rows, read
from benchmarks.harness.sections import Section, Text
from benchmarks.messages.micro import section as micro
from benchmarks.messages.network import section as network
from benchmarks.project import section as project
from benchmarks.quality.compare import section as compare
from benchmarks.report import setup
from benchmarks.report.front import front
from benchmarks.report.write import write
from benchmarks.scaling import section as scaling

READ = ("strong", "weak", "micro", "network", "project", "compare", "beyond")
PAGES = (compare, network, scaling, project, micro)  # in the page's order


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument(
        "results",
        type=Path,
        nargs="*",
        metavar="RESULTS",
        help="files of results: strong.jsonl, micro.jsonl and so on (default those of the folder "
        "of --out)",
    )
    OUT(parser)


def run(parsed: argparse.Namespace) -> int:
    """Write the report; returns the exit status.

    Raises:
        InputError: there are no results, or they cannot be read.
    """
    figures.pyplot()
    out = Path(parsed.out)
    known = [out / f"{name}.jsonl" for name in READ]
    paths = parsed.results or [p for p in known if p.exists() or packed(p).exists()]
    if not paths:
        raise InputError(f"{out}: holds none of {', '.join(path.name for path in known)}")
    write(page(read(paths)), out)
    return 0


def page(rows: Rows) -> Section:
    """The report on these rows."""
    when = setup.span(rows.everything)
    lead = "Training networks data-parallel over MPI without a learning rate to tune. Every "
    lead += "sentence with a number is computed from the results; what is a projection says so."
    lead += f" Measured {when}." if when else ""
    lead += f" {earlier}" if (earlier := methods.note(rows.everything)) else ""
    sections: list[Section] = []
    for one in PAGES:
        sections += one.sections(rows.by_kind)
    sections += [setup.section(rows), setup.method()]
    title = f"{PRODUCT} on {where}" if (where := setup.machines(rows)) else PRODUCT
    return Section(title, [*front(rows.by_kind), Text(lead)], sections)

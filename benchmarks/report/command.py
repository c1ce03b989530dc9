"""One HTML page of results, in any mix.

Reads JSON lines of strong, weak, micro, network, project and compare. Writes report.html, which
needs no network and no other file. Figures and sections appear where there are rows for them.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from benchmarks.harness import figures
from benchmarks.harness.command import OUT
from benchmarks.harness.names import PRODUCT
from benchmarks.harness.rows import Rows, read
from benchmarks.harness.sections import Section, Text
from benchmarks.report import setup
from benchmarks.report.front import front
from benchmarks.report.write import write

# Modules of the commands that have ``sections`` for the page, in its order: functions of the rows.
PAGES = (
    "benchmarks.quality.compare.section",
    "benchmarks.messages.network.section",
    "benchmarks.scaling.section",
    "benchmarks.project.section",
    "benchmarks.messages.micro.section",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        metavar="RESULTS",
        help="files of results: strong.jsonl, micro.jsonl and so on",
    )
    OUT(parser)


def run(parsed: argparse.Namespace) -> int:
    """Write the report; returns the exit status."""
    figures.pyplot()
    rows = read(parsed.results)
    write(page(rows), Path(parsed.out))
    return 0


def page(rows: Rows) -> Section:
    """The report on these rows."""
    when = setup.span(rows.everything)
    lead = "Training networks data-parallel over MPI without a learning rate to tune. Every "
    lead += "sentence with a number is computed from the results; what is a projection says so."
    lead += f" Measured {when}." if when else ""
    sections: list[Section] = []
    for name in PAGES:
        sections += import_module(name).sections(rows.by_kind)
    sections += [setup.section(rows), setup.method()]
    title = f"{PRODUCT} on {where}" if (where := setup.machines(rows)) else PRODUCT
    return Section(title, [*front(rows.by_kind), Text(lead)], sections)

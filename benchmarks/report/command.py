"""One HTML page and a Markdown summary of results, in any mix.

Reads JSON lines of strong, weak, micro, network, project and compare. Writes report.html, which
needs no network and no other file, report.md, and the pictures of the latter in report_figures.
Sections appear where there are rows for them.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from benchmarks.harness import figures
from benchmarks.harness.command import OUT
from benchmarks.harness.rows import Rows, read
from benchmarks.harness.sections import Section, Text
from benchmarks.report import setup
from benchmarks.report.write import write

TITLE = "Communication against compute"
# Modules of the commands that have ``sections`` for the page, in its order: functions of the rows.
PAGES = (
    "benchmarks.scaling.section",
    "benchmarks.messages.micro.section",
    "benchmarks.messages.network.section",
    "benchmarks.quality.compare.section",
    "benchmarks.project.section",
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
    lead = [
        "Data-parallel training over MPI, measured: where the time of ranks goes, what more of "
        "them bring, and what messages cost. Every sentence with a number is computed from the "
        "results."
    ]
    if rows["projection"]:
        lead.append("Not all of it is measured: what is a projection says so in its heading.")
    when = setup.span(rows.everything)
    if when:
        lead.append(f"Measured {when}.")
    sections: list[Section] = []
    for name in PAGES:
        sections += import_module(name).sections(rows.by_kind)
    sections += [setup.section(rows), setup.method()]
    return Section(TITLE, [Text(text) for text in lead], sections)

"""One HTML page and a Markdown summary of results, in any mix.

Reads JSON lines of strong, weak, micro, network, project and compare. Writes report.html, which
needs no network and no other file, report.md, and the pictures of the latter in report_figures.
Sections appear where there are rows for them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.harness import figures
from benchmarks.report import accuracy as report_accuracy
from benchmarks.report import micro as report_micro
from benchmarks.report import network as report_network
from benchmarks.report import project as report_project
from benchmarks.report import scaling as report_scaling
from benchmarks.report import setup as report_setup
from benchmarks.report import write as report_write
from benchmarks.report.page import Page
from benchmarks.report.rows import Rows, read

TITLE = "Communication against compute"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        metavar="RESULTS",
        help="files of results: strong.jsonl, micro.jsonl and so on",
    )


def run(parsed: argparse.Namespace) -> int:
    """Write the report; returns the exit status."""
    figures.pyplot()
    rows = read(parsed.results)
    report_write.write(page(rows), Path(parsed.out))
    return 0


def page(rows: Rows) -> Page:
    """The report on these rows."""
    found = [
        report_scaling.section("strong", rows["strong"], rows["prediction"], rows["split"]),
        report_scaling.section("weak", rows["weak"], rows["prediction"]),
        report_micro.section(rows["micro"]),
        report_network.section(rows["network"]),
        report_accuracy.section(rows["compare"]),
        report_project.proof(rows["prediction"]),
        report_project.projections(rows["projection"]),
    ]
    lead = [
        "Data-parallel training over MPI, measured: where the time of ranks goes, what more of "
        "them bring, and what messages cost. Every sentence with a number is computed from the "
        "results."
    ]
    if rows["projection"]:
        lead.append("Not all of it is measured: what is a projection says so in its heading.")
    when = report_setup.span(rows.everything)
    if when:
        lead.append(f"Measured {when}.")
    sections = [section for section in found if section is not None]
    return Page(TITLE, lead, [*sections, report_setup.section(rows), report_setup.method()])

"""One HTML page and a Markdown summary of results, in any mix.

Reads JSON lines of strong, weak, micro, network, project and compare. Writes report.html, which
needs no network and no other file, report.md, and the pictures of the latter in report_figures.
Sections appear where there are rows for them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.harness import figures
from benchmarks.messages.micro import page as micro_page
from benchmarks.messages.network import page as network_page
from benchmarks.project import page as project_page
from benchmarks.quality.compare import page as compare_page
from benchmarks.report import setup as report_setup
from benchmarks.report import write as report_write
from benchmarks.report.page import Page
from benchmarks.report.rows import Rows, read
from benchmarks.scaling import page as scaling_page

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
        scaling_page.section("strong", rows["strong"], rows["prediction"], rows["split"]),
        scaling_page.section("weak", rows["weak"], rows["prediction"]),
        micro_page.section(rows["micro"]),
        network_page.section(rows["network"]),
        compare_page.section(rows["compare"]),
        project_page.proof(rows["prediction"]),
        project_page.projections(rows["projection"]),
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

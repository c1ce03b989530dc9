"""The skeleton that every command of the benchmarks has."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import figures, methods, tables
from benchmarks.harness.jobs import RESULTS
from benchmarks.harness.measure import Job, Session
from benchmarks.harness.options import Option, job_folder, option, shared_folder
from benchmarks.harness.results import Results, Row
from benchmarks.harness.sections import Finding, Section, to_markdown

Namespace = argparse.Namespace
Rounds = Generator[Sequence[Job], None, None]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a command declares; ``run`` does the rest.

    Attributes:
        name: of its files NAME.md and NAME.jsonl, or makes it from the options.
        about: what it does, for --help; None is the text at the head of its module.
        options: its own; --fresh, --report-only and --out are added.
        plan: yields rounds of jobs; a round is measured before the next is asked for, so that this
            may depend on what came out. None measures nothing.
        section: makes what the rows say; None writes nothing.
        libraries: that must be there before long work.
        check: raises InputError where options do not go together; its words, if any, say why
            nothing can be measured here.
        draw: draws figures from the rows.
        verdict: whether what came out is good; otherwise the exit status is 1.
    """

    name: str | Callable[[Namespace], str]
    about: str | None = None
    options: Sequence[Option]
    plan: Callable[[Session], Rounds] | None
    section: Callable[[list[Row], Namespace], Section | None]
    libraries: Sequence[str] = ()
    check: Callable[[Namespace], str | None] = lambda options: None
    draw: Callable[[list[Row], Namespace, Path], None] = lambda rows, options, out: None
    verdict: Callable[[list[Row], Namespace], bool] = lambda rows, options: True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Its options, and those that all commands have."""
        for add in self.options:
            add(parser)
        for add in (*(COMMON if self.plan else ()), OUT):
            add(parser)

    def run(self, options: Namespace) -> int:
        """Measure what is missing of what is asked for, write what there is; the exit status."""
        reason = self.check(options)
        figures.require(*self.libraries)
        out = Path(options.out)
        name = self.name if isinstance(self.name, str) else self.name(options)
        results = Results(out / f"{name}.jsonl")
        failed = 0
        if self.plan and reason and not options.report_only:
            print(f"skipped: {reason}")
        elif self.plan and not options.report_only:
            try:
                failed = self._measure(options, results, out)
            except KeyboardInterrupt:
                print("benchmarks: interrupted; the runs that had ended are kept", flush=True)
                return 130
        rows = results.rows()
        section = self.section(rows, options) if rows else None
        if section is not None:
            if (earlier := methods.note(rows)) is not None:
                section.parts.insert(0, Finding(earlier, warning=True))
            self.draw(rows, options, out)
            tables.write(out / f"{name}.md", *to_markdown(section))
        return 1 if failed or not self.verdict(rows, options) else 0

    def _measure(self, options: Namespace, results: Results, out: Path) -> int:
        """Work off the plan; returns how many pieces failed."""
        assert self.plan is not None
        given = getattr(options, "work", None)
        work = given if isinstance(given, Path) else shared_folder(out)
        with job_folder(work, within=getattr(options, "folder", None)) as folder:
            session = Session(options, results, folder)
            with closing(self.plan(session)) as rounds:
                for jobs in rounds:
                    session.measure(jobs)
        return len(session.failed)


COMMON = (
    option("--fresh", action="store_true", help="measure again what is done of what is asked for"),
    option("--report-only", action="store_true", help="measure nothing, write what there is"),
)
OUT = option(
    "--out",
    default=RESULTS,
    metavar="DIR",
    help="folder of the results (default benchmarks/results of the checkout)",
)

"""The report as one HTML page, and as Markdown with its pictures beside it.

The page is a section: its title, the first paragraphs as parts, and the sections below it.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from apts_mpi.errors import InputError
from benchmarks.harness import drawing, tables
from benchmarks.harness.sections import (
    FIGURES,
    Finding,
    Image,
    Part,
    Picture,
    Section,
    Table,
    Text,
    bullets,
    said,
    slug,
    to_markdown,
)

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def write(page: Section, out: Path) -> None:
    """Write report.html, report.md and the pictures, and say so.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawing.write(page.pictures, out)
        (out / "report.html").write_text(to_html(page), encoding="utf-8")
        print(f"written: {out / 'report.html'}")
        marked = bullets([said(one) for _, one in glance(page)])
        first = [Section("At a glance", [marked])] if marked else []
        whole = replace(page, below=first + page.below)
        tables.write(out / "report.md", *to_markdown(whole, pictures=FIGURES))
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written to: {error}") from None


def glance(page: Section) -> list[tuple[Section, Finding]]:
    """Warnings, then key findings, each with its section."""
    found = [(section, one) for section in page.below for one in section.findings]
    return [pair for pair in found if pair[1].warning] + [
        pair for pair in found if pair[1].key and not pair[1].warning
    ]


def _anchors(page: Section) -> dict[int, str]:
    """A name of its own for every section, by its id()."""
    named: dict[int, str] = {}
    for one in page.walk()[1:]:
        name, number = slug(one.title), 2
        while name in named.values():
            name, number = f"{slug(one.title)}-{number}", number + 1
        named[id(one)] = name
    return named


def to_html(page: Section) -> str:
    """The page, with everything it needs within."""
    named = _anchors(page)
    escape = html.escape
    contents = "\n".join(
        f'<li><a href="#{named[id(one)]}">{escape(one.title)}</a></li>' for one in page.below
    )
    first = "\n".join(_glance(page, named))
    lead = "\n".join(_parts(page.parts))
    body = "\n".join(_section(section, named, 2) for section in page.below)
    summary = f'<h2 id="glance">At a glance</h2>\n<div class="glance">\n{first}\n</div>'
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(page.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#report">Skip to the report</a>
<header>
<h1>{escape(page.title)}</h1>
{lead}
</header>
<nav aria-label="Contents">
<ul>
{contents}
</ul>
</nav>
<main id="report">
{summary if first else ""}
{body}
</main>
</body>
</html>
"""


def _glance(page: Section, named: dict[int, str]) -> Iterator[str]:
    """Warnings, then the key findings of every section."""
    for warning, some in groupby(glance(page), key=lambda pair: pair[1].warning):
        for _, own in groupby(some, key=lambda pair: id(pair[0])):
            listed = list(own)
            section = listed[0][0]
            lines = "".join(f"<li>{_marked(one)}</li>" for _, one in listed)
            link = f'<a href="#{named[id(section)]}">{html.escape(section.title)}</a>'
            kind = "finding warning" if warning else "finding"
            yield f'<div class="{kind}"><p>{link}</p><ul>{lines}</ul></div>'


def _section(section: Section, named: dict[int, str], level: int) -> str:
    parts = "\n".join(_parts(section.parts))
    foot = "".join(f"\n{part}" for part in _parts(section.foot)) + "\n"
    below = "\n".join(_section(one, named, level + 1) for one in section.below)
    title = html.escape(section.title)
    heading = f'<h{level} id="{named[id(section)]}">{title}</h{level}>'
    if section.folded is not None:
        opened = "" if section.folded else " open"
        return f"<details{opened}>\n<summary>{heading}</summary>\n{parts}\n{below}{foot}</details>"
    return f"<section>\n{heading}\n{parts}\n{below}{foot}</section>"


def _parts(parts: list[Part]) -> Iterator[str]:
    """Neighbouring pictures stand side by side where there is room."""
    for drawn, some in groupby(parts, key=lambda part: isinstance(part, Picture)):
        if drawn:
            yield '<div class="pictures">\n' + "\n".join(map(_part, some)) + "\n</div>"
        else:
            yield from map(_part, some)


def _part(part: Part) -> str:
    if isinstance(part, str | Text):
        return f"<p>{html.escape(part if isinstance(part, str) else part.text)}</p>"
    if isinstance(part, Image):
        return ""  # the page stands alone
    if isinstance(part, Finding):
        return _finding(part)
    if isinstance(part, Table):
        return _table(part)
    drawn = drawing.inline(part.svg, part.name, html.escape(part.alt))
    findings = "\n".join(map(_finding, part.findings))
    return (
        f'<figure id="{part.name}">\n<p class="title">{html.escape(part.title)}</p>\n{drawn}\n'
        f'<figcaption>{findings}\n<p class="caption">{html.escape(part.caption)}</p></figcaption>\n'
        "</figure>"
    )


def _marked(finding: Finding) -> str:
    text = html.escape(finding.text)
    return f"<strong>Warning:</strong> {text}" if finding.warning else text


def _finding(finding: Finding) -> str:
    kind = "finding warning" if finding.warning else "finding"
    return f'<p class="{kind}">{_marked(finding)}</p>'


def _table(table: Table) -> str:
    def row(tag: str, cells: list[str]) -> str:
        done = []
        for i, cell in enumerate(cells):
            scope = ' scope="col"' if tag == "th" else ""
            kind = ' class="n"' if i >= table.text else ' class="long"' * (len(cell) > 44)
            done.append(f"<{tag}{scope}{kind}>{html.escape(cell)}</{tag}>")
        return f"<tr>{''.join(done)}</tr>"

    head = row("th", list(table.header))
    body = "\n".join(row("td", list(map(str, cells))) for cells in table.rows)
    caption = html.escape(table.caption)
    # The box scrolls, not the page; with a tabindex the keyboard scrolls it too.
    drawn = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">\n'
        f'<table aria-label="{caption}">\n'
        f"<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )
    if not table.folded:
        return f'<p class="heading">{caption}</p>\n{drawn}'
    return f"<details><summary>{caption}</summary>\n{drawn}\n</details>"

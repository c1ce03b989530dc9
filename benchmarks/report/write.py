"""The report as one HTML page that needs nothing else.

The page is a section: its title, the verdict and the first figures as parts, and below it sections
that are folded. A section shows its figures, then its words, then its tables, folded once more.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from apts_mpi.errors import InputError
from benchmarks.harness import drawing
from benchmarks.harness.sections import (
    Finding,
    Image,
    Markdown,
    Part,
    Picture,
    Section,
    Table,
    Text,
    slug,
)

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
escape = html.escape


def write(page: Section, out: Path) -> None:
    """Write report.html, and say so.

    Raises:
        InputError: the folder cannot be written to.
    """
    path = out / "report.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(to_html(page), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written to: {error}") from None
    print(f"written: {path}")


def to_html(page: Section) -> str:
    """The page, with everything it needs within."""
    lead = "\n".join(map(_words, (part for part in page.parts if isinstance(part, Text))))
    figures = _pictures(page.parts)
    body = "\n".join(_folded(section) for section in page.below)
    content, looks = _hoisted(f"{figures}\n{body}")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(page.title)}</title>
<style>{STYLE}{looks}</style>
</head>
<body>
<a class="skip" href="#report">Skip to the figures</a>
<header>
<h1>{escape(page.title)}</h1>
{lead}
</header>
<main id="report">
{content}
</main>
</body>
</html>
"""


def _hoisted(text: str) -> tuple[str, str]:
    """Drawings with a class for every look, which most of their marks share, and its rules."""
    known: dict[str, str] = {}

    def named(found: re.Match[str]) -> str:
        return f' class="{known.setdefault(found[1], f"l{len(known)}")}"'

    text = re.sub(r' style="([^"]*)"', named, text)
    return text, "".join(f".{name}{{{look}}}\n" for look, name in known.items())


def _folded(section: Section) -> str:
    """A section below the page: its title, and what stands for it, are seen before it is opened."""
    key = next((one for one in section.findings if one.key), None)
    warnings = sum(one.warning for one in section.findings)
    gist = f'<span class="gist">{escape(key.text)}</span>' if key else ""
    if warnings:
        gist += f'<span class="gist warning">{warnings} warning{"s" * (warnings > 1)} inside</span>'
    return (
        f'<details class="part">\n<summary><h2>{escape(section.title)}</h2>{gist}</summary>\n'
        f'<div id="{slug(section.title)}">\n{_content(section, 3)}\n</div>\n</details>'
    )


def _content(section: Section, level: int) -> str:
    parts = [*section.parts, *section.foot]
    more = [one for part in parts if isinstance(part, Picture) for one in part.findings[1:]]
    found = [*more, *(part for part in parts if isinstance(part, Finding))]
    below = [
        f"<section>\n<h{level}>{escape(one.title)}</h{level}>\n"
        f"{_content(one, level + 1)}\n</section>"
        for one in section.below
    ]
    listed = "".join(f"<li{_kind(one)}>{_said(one)}</li>\n" for one in found)
    return "\n".join(
        [
            _pictures(parts),
            f'<ul class="findings">\n{listed}</ul>' if listed else "",
            *below,
            *(_words(part) for part in parts if isinstance(part, str | Text)),
            _data([part for part in parts if isinstance(part, Table)]),
        ]
    )


def _words(part: str | Text | Image) -> str:
    if isinstance(part, Text):
        return f"<p>{escape(part.text)}</p>"
    if not isinstance(part, Markdown):
        return f"<p>{escape(str(part))}</p>"
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(part))
    if not text.startswith("- "):
        return f"<p>{text}</p>"
    return f"<ul>{''.join(f'<li>{line[2:]}</li>' for line in text.splitlines())}</ul>"


def _said(finding: Finding) -> str:
    return f"{'<strong>Warning:</strong> ' * finding.warning}{escape(finding.text)}"


def _kind(finding: Finding, usual: str = "") -> str:
    kind = "warning" if finding.warning else usual
    return f' class="{kind}"' if kind else ""


def _pictures(parts: Sequence[Part]) -> str:
    """Figures side by side where there is room."""
    drawn = "\n".join(_picture(part) for part in parts if isinstance(part, Picture))
    return f'<div class="pictures">\n{drawn}\n</div>' if drawn else ""


def _picture(picture: Picture) -> str:
    """What it shows, then the drawing, then how it is read."""
    first = picture.findings[:1]
    found = "".join(f"<p{_kind(one, 'finding')}>{_said(one)}</p>\n" for one in first)
    return (
        f'<figure id="{picture.name}">\n<p class="title">{escape(picture.title)}</p>\n{found}'
        f"{drawing.inline(picture.svg, picture.name, escape(picture.alt))}\n"
        f"<figcaption>{escape(picture.caption)}</figcaption>\n</figure>"
    )


def _data(tables: Sequence[Table]) -> str:
    drawn = "\n".join(map(_table, tables))
    return f'<details class="data"><summary>Data</summary>\n{drawn}\n</details>' if drawn else ""


def _table(table: Table) -> str:
    caption = escape(table.caption)
    heading = f'<p class="heading">{caption}</p>\n' if caption else ""
    label = f'aria-label="{caption or "Data"}"'
    body = "\n".join(_row(table, "td", cells) for cells in table.rows)
    # The box scrolls, not the page; with a tabindex the keyboard scrolls it too.
    return (
        f'{heading}<div class="scroll" role="region" tabindex="0" {label}>\n<table {label}>\n'
        f"<thead>{_row(table, 'th', table.header)}</thead>\n<tbody>\n{body}\n</tbody>\n"
        "</table>\n</div>"
    )


def _row(table: Table, tag: str, cells: Sequence[object]) -> str:
    return f"<tr>{''.join(_cells(table, tag, cells))}</tr>"


def _cells(table: Table, tag: str, cells: Sequence[object]) -> Iterator[str]:
    scope = ' scope="col"' if tag == "th" else ""
    for i, cell in enumerate(map(str, cells)):
        kind = ' class="n"' if i >= table.text else ' class="long"' * (len(cell) > 44)
        yield f"<{tag}{scope}{kind}>{escape(cell)}</{tag}>"

"""What results say, apart from how: sections of text, tables, pictures and findings.

A command makes one section of its rows, which serves its Markdown file and the page of ``report``.
A paragraph that is a ``str`` is Markdown written by hand (code, bold, a list); all other text is
plain, and is escaped by whoever writes it, but for what is marked as ``Markdown``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from benchmarks.harness import tables


class Markdown(str):
    """Text that has been escaped already, or is Markdown on purpose."""


@dataclass(frozen=True)
class Text:
    """A plain paragraph."""

    text: str


@dataclass(frozen=True)
class Finding:
    """A sentence computed from the data.

    Attributes:
        text: the sentence. warning: it reports something bad. key: it stands for its section.
    """

    text: str
    warning: bool = False
    key: bool = False


@dataclass(frozen=True)
class Table:
    """Columns with units in their headings; the first ``text`` are words, the others numbers.

    Attributes:
        caption: above it, if it needs one.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    text: int = 1


@dataclass(frozen=True)
class Image:
    """A PNG file beside a command's Markdown; the page, which stands alone, leaves it out."""

    alt: str
    file: str


@dataclass(frozen=True)
class Picture:
    """A figure of the page; a command's Markdown has its findings alone.

    Attributes:
        name: unique. title: above it. caption: below it. alt: what is in it, for those who do not
            see it. draw: makes the drawing (``drawing.svg``). findings: what it shows, the first
            one above it, the others among the section's words.
    """

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[], str]
    findings: tuple[Finding, ...] = ()

    @cached_property
    def svg(self) -> str:
        """The drawing, made when it is first needed."""
        return self.draw()


Part = str | Text | Finding | Table | Image | Picture


@dataclass
class Section:
    """A heading with parts, sections a level below, and parts after those."""

    title: str
    parts: list[Part] = field(default_factory=list)
    below: list[Section] = field(default_factory=list)
    foot: list[Part] = field(default_factory=list)

    def walk(self) -> list[Section]:
        """This section and all below."""
        return [self, *(one for section in self.below for one in section.walk())]

    @property
    def findings(self) -> list[Finding]:
        """All findings in it, in order."""
        found: list[Finding] = []
        for part in (part for one in self.walk() for part in (*one.parts, *one.foot)):
            if isinstance(part, Finding | Picture):
                found += part.findings if isinstance(part, Picture) else [part]
        return found


def bullets(lines: Sequence[str]) -> str:
    """A list, as a paragraph."""
    return "\n".join(f"- {line}" for line in lines)


def slug(text: str) -> str:
    """A name for files and anchors."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "part"


def to_markdown(section: Section, *, level: int = 1) -> Iterator[str]:
    """Its paragraphs, headings from ``level`` down; of pictures what they show."""
    yield f"{'#' * level} {escaped(section.title)}"
    for part in section.parts:
        yield from _paragraphs(part)
    for one in section.below:
        yield from to_markdown(one, level=level + 1)
    for part in section.foot:
        yield from _paragraphs(part)


def _paragraphs(part: Part) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, Text):
        yield escaped(part.text)
    elif isinstance(part, Finding):
        yield said(part)
    elif isinstance(part, Table):
        if part.caption:
            yield f"{escaped(part.caption)}:"
        rows = [[escaped(cell) for cell in row] for row in part.rows]
        yield tables.markdown([escaped(cell) for cell in part.header], rows, text=part.text)
    elif isinstance(part, Image):
        yield f"![{escaped(part.alt)}]({part.file})"
    else:
        yield from map(said, part.findings)


def said(finding: Finding) -> str:
    """A finding as Markdown."""
    return f"**Warning:** {escaped(finding.text)}" if finding.warning else escaped(finding.text)


def escaped(text: object) -> str:
    """Text that Markdown takes as text."""
    if isinstance(text, Markdown):
        return str(text)
    found = str(text)
    for letter in "\\`*|#":
        found = found.replace(letter, f"\\{letter}")
    found = found.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")
    return found.replace("~~", "\\~~")
